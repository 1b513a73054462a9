"""The whole model with the adapter added into its weights: runs without PEFT and without fedgen."""

import copy
from dataclasses import dataclass
from pathlib import Path

from fedgen.export.card import write_card
from fedgen.learner import Learner
from fedgen.types import Card

USAGE = """
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


@dataclass(frozen=True)
class Merged:
    """The whole model, for plain `transformers`.

    It is written in fp32: rounding the sum of weights and adapter to bf16 would change some answers.
    """

    @property
    def folder_name(self) -> str:
        """`merged`."""
        return "merged"

    @property
    def needs_adapter(self) -> bool:
        """False: with adapter=full the model's own weights are the result."""
        return False

    def write(self, learner: Learner, folder: Path, card: Card) -> None:
        """Writes the model as safetensors, its configuration, the tokenizer and a model card."""
        from peft import PeftModel

        # A copy: merging changes the weights in place, and those are shared with other learners.
        module = copy.deepcopy(learner.module).float()
        # Weights in few bits have become new ones; those that were tied are tied again.
        module.tie_weights()  # type: ignore[operator]
        if isinstance(module, PeftModel):
            module = module.merge_and_unload()
        module.save_pretrained(folder)  # type: ignore[operator]
        learner.tokenizer.save_pretrained(folder)
        write_card(folder, card, USAGE, ("transformers",))
