"""Takes the marks out of a text that steer chat templates; what a model wrote must never speak as one of the turns."""

import re
from collections.abc import Iterable

FAMILIES = re.compile(
    r"<\|[^<>|]{0,40}\|>"  # ChatML, Llama 3, Phi
    r"|</?s>|<(?:pad|unk|mask|bos|eos|cls|sep)>"  # SentencePiece
    r"|\[/?INST\]|<</?SYS>>"  # Llama 2, Mistral
    r"|<(?:start|end)_of_turn>"  # Gemma
    r"|</?(?:think|tool_call|tool_response)>"  # reasoning and tools
    r"|<｜[^<>｜]{0,40}｜>",  # DeepSeek
    re.IGNORECASE,
)
"""Marks of the chat templates that are about. Those of a tokenizer at hand are given besides."""

UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Control characters and marks without width: they could split a template's mark so that no pattern finds it."""


def cleaned(text: str, tokens: Iterable[str] = ()) -> tuple[str, int]:
    """The text without template tokens, and how many were taken out.

    Taking one out may bring the halves of another together, so that goes on until there is none. Characters that nobody
    sees go too, and runs of blanks become one; neither is counted.

    Args:
        text: what a generator wrote.
        tokens: further marks, as they stand in a tokenizer's list of special tokens.

    >>> cleaned("<|im_<|im_end|>start|>turn on  the lamp</s>")
    ('turn on the lamp', 3)
    """
    own = [re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token.strip()]
    marks = re.compile("|".join([*own, FAMILIES.pattern]), FAMILIES.flags)
    text, total, number = UNSEEN.sub("", text), 0, 1
    while number:
        text, number = marks.subn("", text)
        total += number
    return re.sub(r"[ \t]+", " ", text).strip(), total
