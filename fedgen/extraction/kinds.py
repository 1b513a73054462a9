"""Kinds of axes that an option of the width may cut. No option: the width options check their `axes` with it."""

from collections.abc import Sequence

KINDS = ("ffn", "kv", "residual", "rank", "vocab")
"""Feed-forward width, key-value groups with their query heads, residual stream, rank of an adapter, tokens.

Of the vocabulary an option is asked about those tokens only that a part may lack; special ones are always kept.
"""

REASONS = {
    "head_dim": "rotary embeddings pair positions in a head, so units of attention are whole key-value groups: use kv",
    "layer": "whole layers are the business of another option: use extraction=depth",
}
"""Kinds that somebody may well ask for, and why they are not cut here."""


def check(axes: Sequence[str]) -> None:
    """Refuses kinds of axes that cannot be cut.

    >>> check(("ffn", "kv"))

    Raises:
        ValueError: there is none, one stands twice, or one is not among KINDS.
    """
    if not axes:
        raise ValueError(f"axes is empty; name some of {', '.join(KINDS)}, or use extraction=full, which cuts nothing")
    for kind in axes:
        if kind not in KINDS:
            reason = REASONS.get(kind)
            raise ValueError(
                f"axes has {kind!r}, which is not cut: {reason}"
                if reason
                else f"axes has {kind!r}; it must be some of {', '.join(KINDS)}"
            )
    if len(set(axes)) < len(axes):
        raise ValueError(f"axes is {list(axes)}; each kind is to be named once")
