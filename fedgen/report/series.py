"""Numbers over rounds, picked out of a run's records: of the model, of each owner of examples, of each client."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fedgen.report.records import Number, Record, Records, finite
from fedgen.report.text import natural

Points = list[tuple[int, Number]]
"""(round, value), in order of the rounds; a round without the number is left out."""

SECONDS = ("compute", "wire", "wait", "aggregate", "evaluate")
"""Parts of a round's time, in the order in which they happen."""


@dataclass(frozen=True)
class Followed:
    """The number by which a run is judged.

    Attributes:
        split: the evaluation split that is measured every round.
        metric: name of the number.
        higher_is_better: whether a larger number is better.
    """

    split: str
    metric: str
    higher_is_better: bool

    def best(self, points: Points) -> tuple[int, Number] | None:
        """The best of the points, the earliest of equals; None if there are none."""
        if not points:
            return None
        sign = 1 if self.higher_is_better else -1
        return max(points, key=lambda point: (sign * point[1], -point[0]))

    def improved(self, before: Number, after: Number) -> bool:
        """Whether `after` is better than `before`."""
        return after > before if self.higher_is_better else after < before


def followed(records: Records) -> Followed | None:
    """What the run follows: its metric on the first split of its first evaluation; None before any evaluation."""
    for record in records.rounds:
        for split, numbers in evaluation(record).items():
            names = metric_names(numbers)
            metric = record.get("metric")
            if not isinstance(metric, str):
                metric = names[0] if names else None
            if metric is not None:
                return Followed(split, metric, record.get("higher_is_better") is not False)
    return None


def evaluation(record: Record) -> dict[str, Record]:
    """Numbers of each split in a round's record; empty if the round was not measured."""
    splits = record.get("evaluation")
    if not isinstance(splits, Mapping):
        return {}
    return {str(split): dict(numbers) for split, numbers in splits.items() if isinstance(numbers, Mapping)}


def metric_names(numbers: Mapping[str, object]) -> list[str]:
    """Names of the numbers in a split's entry, which may hold owners besides."""
    return [name for name, value in numbers.items() if not isinstance(value, Mapping)]


def quality(records: Records, split: str, metric: str) -> Points:
    """A metric of a split over rounds."""
    return _points((record["round"], evaluation(record).get(split, {}).get(metric)) for record in records.rounds)


def quality_by_owner(records: Records, split: str, metric: str) -> dict[str, Points]:
    """A metric of a split over rounds, for the examples of each owner."""
    values: dict[str, list[tuple[int, object]]] = {}
    for record in records.rounds:
        owners = evaluation(record).get(split, {}).get("owners")
        for owner, numbers in owners.items() if isinstance(owners, Mapping) else ():
            if isinstance(numbers, Mapping):
                values.setdefault(str(owner), []).append((record["round"], numbers.get(metric)))
    return {owner: _points(values[owner]) for owner in sorted(values, key=natural)}


def of_rounds(records: Records, key: str) -> Points:
    """A number of the rounds' own records."""
    return _points((record["round"], record.get(key)) for record in records.rounds)


def of_clients(records: Records, key: str) -> dict[str, Points]:
    """A number of the clients' records, for each client."""
    return _by_client(records, lambda record: record.get(key))


def seconds_of_rounds(records: Records, part: str) -> Points:
    """Seconds of a part of the rounds."""
    return _points((record["round"], seconds(record, part)) for record in records.rounds)


def seconds_by_client(records: Records, part: str) -> dict[str, Points]:
    """Seconds of a part of the clients' turns, for each client."""
    return _by_client(records, lambda record: seconds(record, part))


def seconds(record: Record, part: str) -> Number | None:
    """Seconds that a part of a round or of a client's turn took; `total` is the round by the wall clock."""
    parts = record.get("seconds")
    return finite(parts.get(part)) if isinstance(parts, Mapping) else None


def known(values: Iterable[object]) -> list[Number]:
    """Those of the values that are numbers."""
    return [number for value in values if (number := finite(value)) is not None]


def _by_client(records: Records, pick: Callable[[Record], object]) -> dict[str, Points]:
    values: dict[str, list[tuple[int, object]]] = {}
    for record in records.clients:
        values.setdefault(record["client"], []).append((record["round"], pick(record)))
    return {client: _points(values[client]) for client in sorted(values, key=natural)}


def _points(values: Iterable[tuple[int, object]]) -> Points:
    numbers = ((at, finite(value)) for at, value in values)
    return [(at, number) for at, number in numbers if number is not None]
