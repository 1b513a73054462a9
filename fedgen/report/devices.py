"""What devices of each size had to hold, to send and to compute: one row per width of the model's parts."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from fedgen.report import series
from fedgen.report.records import Number, Record, finite


def device_classes(turns: Sequence[Record]) -> list[Record]:
    """One row per width, the widest first, as `fedgen.report.summarise` tells them.

    Args:
        turns: the records of clients, in order of their rounds.
    """
    by_width: dict[Number, list[Record]] = {}
    for turn in turns:
        by_width.setdefault(_width(turn), []).append(turn)
    return [_row(width, by_width[width]) for width in sorted(by_width, reverse=True)]


def has_parts(classes: Sequence[Record]) -> bool:
    """Whether any client held less than everything."""
    return any(row["width"] != 1 for row in classes)


def has_late(classes: Sequence[Record]) -> bool:
    """Whether any reply came in rounds after it was asked for."""
    return any(row["staleness"] for row in classes)


def _width(turn: Record) -> Number:
    width = finite(turn.get("width"))
    return 1.0 if width is None else width


def _row(width: Number, turns: Sequence[Record]) -> Record:
    at, loss = _newest_loss(turns)
    return {
        "width": width,
        "num_clients": len({turn["client"] for turn in turns}),
        "num_turns": len(turns),
        **{key: _largest(turns, key) for key in ("held_bytes", "train_bytes")},
        # A device that cannot tell its peak says zero.
        "peak_memory_bytes": _largest(turns, "peak_memory_bytes") or None,
        **{key: _mean(turn.get(key) for turn in turns) for key in ("bytes_down", "base_bytes", "bytes_up")},
        "staleness": _mean(_staleness(turn) for turn in turns),
        "seconds_compute": _mean(series.seconds(turn, "compute") for turn in turns),
        "loss": loss,
        "loss_round": at,
    }


def _staleness(turn: Record) -> Number | None:
    """Rounds from the request to the round in which the reply came in."""
    asked = finite(turn.get("asked"))
    return None if asked is None else turn["round"] - asked


def _newest_loss(turns: Sequence[Record]) -> tuple[int | None, float | None]:
    """The last round in which a turn of the class counted, and the mean of its losses, weighted by examples."""
    counted = [turn for turn in turns if not turn.get("refused") and finite(turn.get("loss")) is not None]
    if not counted:
        return None, None
    at = max(turn["round"] for turn in counted)
    newest = [turn for turn in counted if turn["round"] == at]
    weights = [max(0, finite(turn.get("num_examples")) or 0) for turn in newest]
    return at, fmean([turn["loss"] for turn in newest], weights if sum(weights) > 0 else None)


def _largest(turns: Sequence[Record], key: str) -> Number | None:
    return max(series.known(turn.get(key) for turn in turns), default=None)


def _mean(values: Iterable[object]) -> float | None:
    known = series.known(values)
    return fmean(known) if known else None
