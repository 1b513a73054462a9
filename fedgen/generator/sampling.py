"""Draws the answers to prompts that begin alike, side by side.

What the prompts share goes through the model once, and its keys and values are repeated for each of them. The rest is
padded on the left, so that the next token of all of them comes from the last column. Temperature, then the `top_k`
likeliest, then the likeliest of these with `top_p` together (Holtzman et al., 2020, section 3.1), as in
``generate`` of transformers.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedgen.learner import Learner


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token.

    Attributes:
        temperature: divides the logits.
        top_k: how many tokens are drawn from.
        top_p: probability that the likeliest of these, from which is drawn, have together.
        max_new_tokens: longest answer.
    """

    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int


@dataclass
class _Answer:
    """One answer while it is written.

    Attributes:
        random: draws one number for each of its tokens, so that no other answer changes them.
        ids: its tokens so far.
        done: whether it has ended.
    """

    random: Random
    ids: list[int] = field(default_factory=list)
    done: bool = False


@torch.no_grad()
def sample(learner: Learner, prompts: Sequence[list[int]], draws: Sequence[Random], settings: Sampling) -> list[str]:
    """One answer to each prompt, up to the first line break or special token, which is left out.

    Args:
        learner: over a whole model.
        prompts: token ids; at least one, none empty.
        draws: random numbers of each answer.
        settings: how to draw.
    """
    model, tokenizer = _parts_of(learner)
    shared = _num_shared(prompts)
    cache = _read_once(model, prompts[0][:shared], len(prompts))
    ids, mask = _padded([prompt[shared:] for prompt in prompts], tokenizer.eos_token_id)
    mask = torch.cat([torch.ones(len(prompts), shared, dtype=torch.long), mask], 1)
    special = special_tokens(tokenizer)
    answers = [_Answer(random) for random in draws]
    for _ in range(settings.max_new_tokens):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        states = model.get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        # Two-dimensional and contiguous: of a slice with three dimensions the head's weight is copied for each row.
        logits = model.get_output_embeddings()(states.contiguous())
        drawn = draw(logits, [answer.random.random() for answer in answers], settings)
        for answer, token in zip(answers, drawn.tolist(), strict=True):
            _append(answer, token, special, tokenizer)
        if all(answer.done for answer in answers):
            break
        ids = drawn[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
    return [_clean(tokenizer.decode(answer.ids), special.values()) for answer in answers]


def draw(
    logits: Float[Tensor, "answers vocab"], numbers: Sequence[float], settings: Sampling
) -> Int[Tensor, " answers"]:
    """The next token of each answer.

    Args:
        logits: of the next token.
        numbers: for each answer, one in [0, 1), at which its distribution function is inverted.
        settings: temperature, top_k, top_p.
    """
    likeliest, tokens = (logits.float() / settings.temperature).topk(min(settings.top_k, logits.shape[1]))
    shares = likeliest.softmax(-1)
    before = shares.cumsum(-1) - shares
    sums = shares.masked_fill((before >= settings.top_p) & (before > 0), 0.0).cumsum(-1)
    wanted = torch.tensor(numbers, dtype=sums.dtype)[:, None] * sums[:, -1:]
    place = (sums <= wanted).sum(-1, keepdim=True)
    # Rounding can put the wanted share at the very sum of all; then it is the last token that has a share.
    last = (sums < sums[:, -1:]).sum(-1, keepdim=True)
    return tokens.gather(1, torch.minimum(place, last)).squeeze(1)


def _parts_of(learner: Learner) -> tuple[Any, Any]:
    return learner.module, learner.tokenizer


def _num_shared(prompts: Sequence[list[int]]) -> int:
    """Tokens with which all prompts begin; one of each is left, since the next token comes from it."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    return next((n for n in range(shortest) if any(p[n] != first[n] for p in prompts)), shortest)


def _read_once(model: Any, ids: list[int], num_rows: int) -> Any:  # noqa: ANN401 - transformers' own types
    """Keys and values of a beginning, repeated for each row."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    if ids:
        model.get_decoder()(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(num_rows)
    return cache


def _padded(rows: Sequence[list[int]], pad: int) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    """Tokens with padding on the left, and where there are tokens."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def special_tokens(tokenizer: Any) -> dict[int, str]:  # noqa: ANN401
    """Tokens that are no text: those with a part of their own, such as the end, and those of the chat template."""
    own = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return own | {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _append(answer: _Answer, token: int, special: Container[int], tokenizer: Any) -> None:  # noqa: ANN401
    """Takes the next token, or ends with it."""
    if answer.done:
        return
    breaks = "\n" in tokenizer.decode([token]) and bool(tokenizer.decode(answer.ids).strip())
    answer.done = token in special or breaks
    if not answer.done:
        answer.ids.append(token)


def _clean(text: str, special: Iterable[str]) -> str:
    """Without what looks like a token of the chat template, spelt out of ordinary tokens."""
    for token in special:
        text = text.replace(token, " ")
    return text.strip()
