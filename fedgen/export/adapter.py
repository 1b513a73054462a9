"""The adapter alone, as PEFT writes it: a few megabytes that go onto the base model."""

from dataclasses import dataclass
from pathlib import Path

from fedgen.export.card import write_card
from fedgen.learner import Learner
from fedgen.types import Card

USAGE = """
from peft import PeftModel
from transformers import AutoModelForCausalLM

# The base model named above: a hub id as it is, else the folder that `fedgen.model.source.folder_of` finds.
base = AutoModelForCausalLM.from_pretrained(base_folder, dtype="float32")
model = PeftModel.from_pretrained(base, adapter_folder)
"""


@dataclass(frozen=True)
class Adapter:
    """The adapter alone, for `peft.PeftModel.from_pretrained`."""

    @property
    def folder_name(self) -> str:
        """`adapter`."""
        return "adapter"

    @property
    def needs_adapter(self) -> bool:
        """True."""
        return True

    def write(self, learner: Learner, folder: Path, card: Card) -> None:
        """Writes adapter_config.json, adapter_model.safetensors, the tokenizer and a model card."""
        # The base is named as the user named it, not by the folder of this machine where it happened to lie.
        for config in learner.module.peft_config.values():  # type: ignore[operator]
            config.base_model_name_or_path = card.base
        # The vocabulary is as it was; without saying so, PEFT asks a hub about it.
        learner.module.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        learner.tokenizer.save_pretrained(folder)
        write_card(folder, card, USAGE, ("peft", "lora"))
