"""Lays the examples of a batch side by side in few rows, without padding and with their common beginning only once.

Instructions are short and their lengths differ, so a padded batch is a third padding; and a chat template opens every
example with the same tokens. Here a row is ``[common beginning][example][example]…``; attention is causal, every token
sees the common beginning, and no example sees another. Positions count on from the beginning in every example, so that
the result is that of each example alone. Rows are filled first-fit up to a capacity, because attention costs the square
of it.

Sequence packing without cross-contamination: Krell et al., "Efficient Sequence Packing without Cross-contamination",
2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedgen.dryrun import in_numbers
from fedgen.types import Encoded, Index

ROW_TOKENS = 256
"""Rows are not made longer than this unless one example is."""


@dataclass(frozen=True)
class Packed:
    """A batch in rows.

    Attributes:
        ids: token ids.
        positions: position of each token in its own example.
        visible: whether a token (second last dimension) may look at another (last dimension).
        rows: row of the token that predicts each answer token.
        columns: column of that token.
        targets: the answer tokens.
        owners: which example of the batch each answer token belongs to.
    """

    ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    visible: Bool[Tensor, "rows 1 length length"]
    rows: Int[Tensor, " answers"]
    columns: Int[Tensor, " answers"]
    targets: Int[Tensor, " answers"]
    owners: Int[Tensor, " answers"]


def pack(batch: Sequence[Encoded], tokens: Index | None = None) -> Packed:
    """Packs a batch; answer tokens come example by example, in the order of the batch.

    Args:
        batch: examples.
        tokens: those that a part of a model holds, ascending, all of the batch's among them; the ids of the result are
            then places in this list. None for a model that holds all.
    """
    if tokens is not None:
        with in_numbers():
            batch = [Encoded(tuple(places_of(encoded.ids, tokens).tolist()), encoded.num_prompt) for encoded in batch]
    shared = _common_beginning(batch)
    rests = [len(encoded.ids) - shared for encoded in batch]
    row_of, start_of, num_rows, longest = _first_fit(rests, max(ROW_TOKENS - shared, max(rests)))
    length = shared + longest
    # Unused places are examples of their own that nobody sees; they see themselves, so that no row of scores is empty.
    segment = -1 - torch.arange(length).repeat(num_rows, 1)
    segment[:, :shared] = 0
    ids = torch.zeros(num_rows, length, dtype=torch.long)
    positions = torch.zeros(num_rows, length, dtype=torch.long)
    ids[:, :shared] = torch.tensor(batch[0].ids[:shared], dtype=torch.long)
    positions[:, :shared] = torch.arange(shared)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for number, (encoded, row, rest) in enumerate(zip(batch, row_of, rests, strict=True)):
        start = shared + start_of[number]
        segment[row, start : start + rest] = number + 1
        ids[row, start : start + rest] = torch.tensor(encoded.ids[shared:], dtype=torch.long)
        positions[row, start : start + rest] = torch.arange(shared, shared + rest)
        num_answers = len(encoded.ids) - encoded.num_prompt
        first = start + encoded.num_prompt - shared - 1
        rows += [row] * num_answers
        columns += range(first, first + num_answers)
        targets += encoded.ids[encoded.num_prompt :]
        owners += [number] * num_answers
    same = segment[:, :, None] == segment[:, None, :]
    beginning = (torch.arange(length) < shared)[None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = ((same | beginning) & causal)[:, None]
    as_index = torch.tensor([rows, columns, targets, owners], dtype=torch.long)
    return Packed(ids, positions, visible, *as_index)


def places_of(ids: Sequence[int], tokens: Index) -> Index:
    """Where tokens stand among those that a part holds.

    >>> places_of((7, 2), torch.tensor([2, 5, 7])).tolist()
    [2, 0]
    """
    wanted = torch.tensor(ids, dtype=torch.long)
    places = torch.searchsorted(tokens, wanted)
    assert torch.equal(tokens[places.clamp(max=len(tokens) - 1)], wanted), "all tokens must be held"
    return places


def _common_beginning(batch: Sequence[Encoded]) -> int:
    """Number of leading tokens that all prompts share; the last prompt token is left out, since it predicts."""
    columns = zip(*(encoded.ids[: encoded.num_prompt - 1] for encoded in batch), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _first_fit(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int], int, int]:
    """Row and start of each length, number of rows, and length of the longest row."""
    used: list[int] = []
    rows, starts = [], []
    for length in lengths:
        row = next((r for r, taken in enumerate(used) if taken + length <= capacity), len(used))
        if row == len(used):
            used.append(0)
        rows.append(row)
        starts.append(used[row])
        used[row] += length
    return rows, starts, len(used), max(used)
