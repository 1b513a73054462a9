"""A decoder-only language model at work, one for each worker; ``shared`` holds the weights that they have in common."""

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgen.errors import ModelError
from fedgen.model.axes import layers_of
from fedgen.model.importance import measure_importance
from fedgen.model.loss import CHUNK_TOKENS, Change, mean_loss, restrict, token_losses
from fedgen.model.packing import Packed, pack, places_of
from fedgen.model.recompute import recomputed
from fedgen.model.window import Window, added_to
from fedgen.types import Encoded, Example, Index, Prompt, Score, Scores, State


@dataclass(frozen=True)
class TextLearner:
    """A language model with its adapter on.

    Attributes:
        module: stock transformers model, with PEFT on it if the adapter says so.
        tokenizer: its tokenizer.
        trainable: trainable parameters by name.
        tensors: where the tensors of a state are loaded into, by name; trainable or not.
        max_length: longest example in tokens.
        checkpointing: layers are recomputed in the backward pass.
        chunk_tokens: rows of logits that exist at once; None for all.
        tokens: those that it holds, ascending; None for all. Ids in examples are the tokenizer's; the module knows a
            token by its place in this list.
    """

    module: nn.Module
    tokenizer: Any
    trainable: dict[str, nn.Parameter]
    tensors: State
    max_length: int
    checkpointing: bool = False
    chunk_tokens: int | None = CHUNK_TOKENS
    tokens: Index | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return self.trainable

    def state(self) -> State:
        """A copy of the trainable tensors."""
        return {name: parameter.detach().clone() for name, parameter in self.trainable.items()}

    def load(self, state: State) -> None:
        """Copies the given tensors into the model."""
        for name, tensor in state.items():
            self.tensors[name].copy_(tensor)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Token ids of prompt and answer, the answer closed by the end-of-sequence token; None for what it cannot say.

        Raises:
            ModelError: the examples are conversations and the model has no chat template.
        """
        if not examples:
            return []
        prompts = [self._prompt_ids(example.prompt) for example in examples]
        answers = self.tokenizer([e.completion for e in examples], add_special_tokens=False)["input_ids"]
        found = [
            Encoded(tuple((p + a + [self.tokenizer.eos_token_id])[: self.max_length]), len(p))
            for p, a in zip(prompts, answers, strict=True)
        ]
        return [e if e.num_prompt < self.max_length and self.holds(e) else None for e in found]

    def holds(self, encoded: Encoded) -> bool:
        """Whether the model has all tokens of an example."""
        return not self._missing(encoded.ids)

    def loss(self, batch: Sequence[Encoded], among: Index | None = None) -> Float[Tensor, ""]:
        """Mean loss per answer token; logits exist only where there is an answer."""
        packed = self.packed(batch)
        (head, targets), change = restrict(self.head(), packed.targets, self.places(among)), self._change()
        if change is not None and among is not None:
            head, change = head + added_to(among, *change), None
        return mean_loss(self.hidden(packed), head, targets, self.chunk_tokens, change)

    def score(self, batch: Sequence[Encoded]) -> list[Score]:
        """Loss and exactness of each example. An example's numbers do not depend on the batch beyond rounding."""
        packed = self.packed(batch)
        with torch.no_grad():
            losses, right = token_losses(
                self.hidden(packed), self.head(), packed.targets, self.chunk_tokens, self._change()
            )
        counts = torch.bincount(packed.owners, minlength=len(batch)).tolist()
        return [
            Score(float(nll.double().sum()), len(nll), bool(ok.all()))
            for nll, ok in zip(losses.split(counts), right.split(counts), strict=True)
        ]

    def generate(self, prompt: Prompt, max_new_tokens: int = 64) -> str:
        """The greedy answer, without special tokens.

        Raises:
            ModelError: the prompt has tokens that the model does not hold, or there is no template for a conversation.
        """
        asked = self._prompt_ids(prompt)
        if missing := self._missing(asked):
            text = self.tokenizer.decode(missing)
            raise ModelError(f"this part of the model does not hold the tokens of {text!r}; ask the whole model")
        ids = self._places(asked)[None]
        end = int(self._places([self.tokenizer.eos_token_id]))
        with torch.no_grad():
            out = self.module.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=end,
                eos_token_id=end,
            )
        said = out[0, ids.shape[1] :]
        answer: str = self.tokenizer.decode(
            said if self.tokens is None else self.tokens[said], skip_special_tokens=True
        )
        return answer.strip()

    def importance(self, batch: Sequence[Encoded]) -> Scores:
        """How much each unit of every inner axis and each layer matters to this batch; how often each token occurs."""
        packed = self.packed(batch)
        scores = measure_importance(self.plain(), lambda: self.hidden(packed), packed.positions > 0)
        seen = self._places([token for encoded in batch for token in encoded.ids])
        return scores | {"vocab": torch.bincount(seen, minlength=len(self.head())).float()}

    def packed(self, batch: Sequence[Encoded]) -> Packed:
        """A batch in rows, with tokens by their places among those that it holds."""
        return pack(batch, self.tokens)

    def places(self, among: Index | None) -> Index | None:
        """Where tokens stand among those that it holds; None for all of these."""
        return None if among is None else self._places(among.tolist())

    def _places(self, ids: Sequence[int]) -> Index:
        return torch.tensor(ids, dtype=torch.long) if self.tokens is None else places_of(ids, self.tokens)

    def _missing(self, ids: Sequence[int]) -> list[int]:
        """Those that it does not hold."""
        if self.tokens is None:
            return []
        wanted = torch.tensor(ids, dtype=torch.long)
        return wanted[~torch.isin(wanted, self.tokens)].tolist()

    def _change(self) -> Change | None:
        """What is added to some rows of a head that is trained as a window."""
        head = self.plain().get_output_embeddings()
        return (head.get_buffer("outputs"), head.change) if isinstance(head, Window) else None

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the examples are conversations, and this model's tokenizer has no chat template. Use a chat "
                "(instruction-tuned) model, put a chat_template.jinja into the model's folder, or give the data as "
                "prompt and completion"
            )
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        return list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))

    def hidden(self, packed: Packed) -> Float[Tensor, "answers width"]:
        """Last hidden state of the tokens that predict an answer token."""
        decoder = self.plain().get_decoder()
        dtype = decoder.get_input_embeddings().weight.dtype
        # Additive, because eager attention adds its mask; sdpa takes the same. One with 4 dimensions is used as it is.
        mask = torch.zeros(packed.visible.shape, dtype=dtype).masked_fill_(~packed.visible, torch.finfo(dtype).min)
        recomputes = self.checkpointing and torch.is_grad_enabled()
        with recomputed(layer for _, layer in layers_of(self.plain())[1]) if recomputes else contextlib.nullcontext():
            states = decoder(
                input_ids=packed.ids, position_ids=packed.positions, attention_mask=mask, use_cache=False
            ).last_hidden_state
        # Indexed to two dimensions before the head: a three-dimensional slice would copy the head's weight per row.
        picked: Tensor = states[packed.rows, packed.columns]
        return picked

    def head(self) -> Float[Tensor, "vocab width"]:
        """The matrix that makes logits of hidden states."""
        weight: Tensor = self.plain().get_output_embeddings().weight
        return weight

    def plain(self) -> Any:  # noqa: ANN401 - a transformers model; its classes share no typed base with these methods
        """The transformers model under the adapter."""
        adapted: Any = self.module
        return adapted.get_base_model() if "peft_type" in vars(self.module) else adapted


def quiet_libraries() -> None:
    """No telemetry, no progress bars and no advice from transformers; before its first import where possible."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # peft 0.21 reads an attribute that transformers 5.23 has renamed; nothing that a user could change. For good, since
    # parts are made in several threads at once and a filter for a while would be each other's.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
