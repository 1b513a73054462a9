"""Which weights have been trained, and by how many: the auditor of a federation of parts.

A window that rolls too slowly, a mix without wide devices, or two axes of a matrix that roll in phase leave weights
that nobody ever trains, and no loss tells. What is counted are units of axes and, where both dimensions of a weight are
cut, pairs of units.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fedgen.parts import Ground, narrowed
from fedgen.types import Kept, Part, Record

NUM_STRETCHES = 32
"""An axis is told in at most so many equal stretches."""

MOST_TURNS = 20_000
"""Turns of clients that are gone through beforehand; of larger runs, those of some clients of every width."""


class Coverage:
    """Counts what clients held, round by round. Belongs to the server's loop.

    Attributes:
        last: what every client held when it was last asked.
        missed: rounds that each client has missed, since it was still at work.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        units = ground.axes.units
        # Of an axis on which nothing that is trained lies (tokens, beside factors) there is nothing to tell.
        found = {dim.axis for dims in ground.axes.dims.values() for dim in dims if dim is not None}
        found |= {axis for axis, _ in ground.axes.members.values()}
        self._split = sorted(ground.split)
        told = {*ground.experiment.extraction.axes, *(axis.partition(".")[0] for axis in self._split)}
        kinds = {axis.partition(".")[0] for axis in found} & told
        self._units = {axis: number for axis, number in units.items() if axis.partition(".")[0] in kinds}
        self._seen = {axis: torch.zeros(number, dtype=torch.bool) for axis, number in self._units.items()}
        # What decides whether an entry of a tensor is held: the axes of its dimensions, and its layer.
        self._place = {
            name: (
                tuple(dim.axis for dim in dims if dim is not None and dim.axis in self._units),
                ground.axes.members.get(name) if "layer" in self._units else None,
            )
            for name, dims in ground.axes.dims.items()
            if name not in ground.fixed
        }
        self._pairs = {
            axes: torch.zeros(*(units[axis] for axis in axes), dtype=torch.bool)
            for axes, _ in self._place.values()
            if len(axes) == 2 and not ground.split.intersection(axes)
        }
        self._held: list[tuple[Kept, int]] = []
        self.last: dict[str, Part] = {}
        self.missed: Counter[str] = Counter()

    def replay(self, lines: Sequence[Record], on_their_way: Sequence[Record] = ()) -> None:
        """Goes through what a journal says of earlier rounds.

        Parts follow from round, client and width; what only the clients knew stands in the line of the round.

        Args:
            lines: of the journal.
            on_their_way: lines of replies that have not come in yet.
        """
        unknown = dict.fromkeys(self._split, torch.arange(0))
        for line in lines:
            if line["kind"] == "client":
                part = self.last[line["client"]] = self.come_in(line)
                if line["refused"] is None:
                    self.reach(narrowed(part, unknown))
            elif line["kind"] == "round":
                for axis, runs in line.get("coverage", {}).get("trained", {}).items():
                    for start, length in runs:
                        self._seen[axis][start : start + length] = True
        for line in on_their_way:
            self.last[line["client"]] = self._asked_of(line)

    def come_in(self, line: Record) -> Part:
        """Notes that a reply has come in, whatever it is worth.

        Returns:
            The part that the client was asked to work with.
        """
        part = self._asked_of(line)
        self.missed[line["client"]] += line["round"] - _asked(line)
        return part

    def add(self, part: Part, weight: int) -> None:
        """Notes that a client of some weight held, and trained, a part in the round that goes on."""
        self._held.append((part.kept, weight))
        self.reach(part)

    def reach(self, part: Part) -> None:
        """Notes that a part is trained by somebody in some round."""
        for axis, seen in self._seen.items():
            seen[_all_or(part.kept, axis)] = True
        for axes, seen in self._pairs.items():
            rows, columns = (_positions(part.kept, axis, self._units[axis]) for axis in axes)
            seen[rows[:, None], columns] = True

    def end_round(self) -> Record:
        """What was held in the round that is over, as it stands in the journal; begins the next."""
        held, self._held = self._held, []
        total = sum(weight for _, weight in held)
        if not self._units or not total:
            return {}
        mass = {axis: self._mass(axis, held) / total for axis in self._units}
        shares = {place: self._shares(place, held, mass, total) for place in set(self._place.values())}
        kinds = dict.fromkeys(axis.partition(".")[0] for axis in self._units)
        return {
            "units": {kind: _stretches([m for a, m in mass.items() if a.partition(".")[0] == kind]) for kind in kinds},
            "tensors": {name: shares[place] for name, place in self._place.items()},
            **({"trained": {axis: _runs(mass[axis] > 0) for axis in self._split}} if self._split else {}),
        }

    def never(self) -> dict[str, float]:
        """Kind of axis → share of its units that nobody has held so far; of pairs where these are fewer."""
        found: dict[str, list[float]] = {}
        for axis, seen in self._seen.items():
            found.setdefault(axis.partition(".")[0], []).append(1 - float(seen.double().mean()))
        for axes, seen in self._pairs.items():
            kinds = " × ".join(sorted(axis.partition(".")[0] for axis in axes))
            found.setdefault(kinds, []).append(1 - float(seen.double().mean()))
        return {kind: sum(shares) / len(shares) for kind, shares in found.items()}

    def _asked_of(self, line: Record) -> Part:
        less = line.get("top_layers", 1.0), line.get("rank")
        return self._ground.part(line["client"], _asked(line), line["width"], self.missed[line["client"]], *less)

    def _mass(self, axis: str, held: Sequence[tuple[Kept, int]]) -> Tensor:
        mass = torch.zeros(self._units[axis], dtype=torch.float64)
        for kept, weight in held:
            mass[_all_or(kept, axis)] += weight
        return mass

    def _shares(
        self,
        place: tuple[tuple[str, ...], tuple[str, int] | None],
        held: Sequence[tuple[Kept, int]],
        mass: Mapping[str, Tensor],
        total: int,
    ) -> dict[str, float]:
        """Mean held mass share of the entries at a place, and the share of them that nobody has held in any round."""
        axes, member = place
        now, never = 0.0, 0.0
        if member is not None:
            now, never = float(mass["layer"][member[1]]), 1 - float(self._seen["layer"][member[1]])
        elif len(axes) == 2:
            now = sum(w * _share(k, axes[0], self._units) * _share(k, axes[1], self._units) for k, w in held) / total
            never = 1 - self._reached(axes)
        elif axes:
            now, never = float(mass[axes[0]].mean()), 1 - float(self._seen[axes[0]].double().mean())
        else:
            now = 1.0
        return {"held": round(now, 6), "never": round(never, 6)}

    def _reached(self, axes: tuple[str, ...]) -> float:
        """Share of the pairs of units of two axes that somebody has held.

        Who has which token is not written down, so of tokens a pair counts if both of its units were held by anybody.
        """
        if axes in self._pairs:
            return float(self._pairs[axes].double().mean())
        first, second = (float(self._seen[axis].double().mean()) for axis in axes)
        return first * second


def warn_of_gaps(ground: Ground) -> list[str]:
    """What no client will ever hold in this run, by going through all of its rounds beforehand; one line per kind.

    Raises:
        ConfigError: the extraction finds that its rule cannot reach all units.
    """
    coverage = Coverage(ground)
    widths, gaps, num_seen = set[float](), coverage.never(), 0
    for number, everybody in enumerate(_rounds(ground), start=1):
        asked = _some(ground, everybody)
        for client, turn in asked.items():
            # When nothing is left to reach, a width that is new may still be one that the extraction refuses.
            if gaps or turn.width not in widths:
                part = ground.part(client, number, turn.width, turn.missed)
                if turn.counts:
                    coverage.reach(part)
        widths |= {turn.width for turn in asked.values()}
        num_seen += len(asked)
        gaps = {kind: share for kind, share in coverage.never().items() if share > 0}
        if not gaps and num_seen > MOST_TURNS:
            break
    if not gaps:
        return []
    shares = ", ".join(f"{share:.1%} of {kind}" for kind, share in gaps.items())
    widest = max(widths, default=0.0)
    return [
        f"{shares} will never be trained in this run: the widest device holds {widest:g} of every cut axis, and the "
        "extraction does not bring it to the rest. Let some devices be wider, or choose an extraction that moves faster"
    ]


class _Turn(NamedTuple):
    """A client is asked: the width of its part, rounds that it has missed, whether its reply comes before the end."""

    width: float
    missed: int
    counts: bool


def _rounds(ground: Ground) -> Iterator[dict[str, _Turn]]:
    """The clients that are asked, round by round, as the loop asks them."""
    experiment = ground.experiment
    due, missed = Counter[str](), Counter[str]()
    for number in range(1, experiment.num_rounds + 1):
        devices = experiment.fleet.devices(ground.clients, number, experiment.seed)
        free = [client for client, device in devices.items() if device.width > 0 and due[client] < number]
        asked = experiment.cohort(free, number)
        yield {
            client: _Turn(
                devices[client].width, missed[client], number + devices[client].delay <= experiment.num_rounds
            )
            for client in asked
        }
        for client in asked:
            due[client] = number + devices[client].delay
            missed[client] += devices[client].delay


def _some(ground: Ground, asked: dict[str, _Turn]) -> dict[str, _Turn]:
    """Those who are asked in a round; of very many, some of every width."""
    num_rounds = ground.experiment.num_rounds
    if num_rounds * len(asked) <= MOST_TURNS:
        return asked
    by_width: dict[float, list[str]] = {}
    for client, turn in asked.items():
        by_width.setdefault(turn.width, []).append(client)
    number_each = max(3, MOST_TURNS // (num_rounds * len(by_width)))
    chosen = [client for clients in by_width.values() for client in clients[:: -(-len(clients) // number_each)]]
    return {client: asked[client] for client in chosen}


def _asked(line: Record) -> int:
    """The round of the request that a client's line is about; older runs did not say, since it was the line's own."""
    return int(line.get("asked") or line["round"])


def _all_or(kept: Kept, axis: str) -> Tensor | slice:
    return kept[axis] if axis in kept else slice(None)


def _positions(kept: Kept, axis: str, units: int) -> Tensor:
    return kept[axis] if axis in kept else torch.arange(units)


def _runs(units: Tensor) -> list[list[int]]:
    """Stretches of the units that are marked, as start and length.

    >>> _runs(torch.tensor([True, True, False, True]))
    [[0, 2], [3, 1]]
    """
    edges = torch.diff(units.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero().view(-1, 2)
    return [[int(start), int(end - start)] for start, end in edges]


def _share(kept: Kept, axis: str, units: Mapping[str, int]) -> float:
    return len(kept[axis]) / units[axis] if axis in kept else 1.0


def _stretches(masses: Sequence[Tensor]) -> list[float]:
    """Mean mass of equal stretches of the axes, averaged over them."""
    told = []
    for mass in masses:
        number = min(NUM_STRETCHES, len(mass))
        edges = [len(mass) * at // number for at in range(number + 1)]
        told.append([float(mass[a:b].mean()) for a, b in pairwise(edges)])
    longest = max(map(len, told))
    rows = [row for row in told if len(row) == longest]
    return [round(sum(column) / len(column), 6) for column in zip(*rows, strict=True)]
