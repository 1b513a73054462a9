"""A run in one nested dict of plain values: what report.json holds, and what the page and the terminal show."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedgen.report import series
from fedgen.report.coverage import summary_of_coverage
from fedgen.report.devices import device_classes
from fedgen.report.gate import summary_of_gate
from fedgen.report.records import Number, Record, Records, finite, plain, read
from fedgen.report.seeding import summary_of_seeding
from fedgen.report.series import SECONDS, Followed, Points
from fedgen.report.text import natural


def summarise(folder: Path) -> dict[str, Any]:
    """What there is to say about a run.

    Args:
        folder: the run folder; the run may still be going on.

    Returns:
        Plain values under these keys. `name`, `folder`, `status` (finished or unfinished), `seed`;
        `rounds_done` and `num_rounds` (None if the configuration does not say);
        `followed` ({split, metric, higher_is_better} or None: the number by which the run is judged) and its `before`,
        `after` and `best` ({round, value} or None each);
        `quality`: one {split, metric, before, after, round} per split and metric, `after` being taken in `round`;
        `loss`: mean training loss of the last round; `totals`: {bytes_down, bytes_up, num_refused,
        seconds: {part: number, total: by the wall clock}}; `peak_memory_bytes`: {rounds, clients}, of which `rounds` is
        the process that runs the rounds and `clients` the largest client;
        `clients`: one {client, num_examples, num_rounds, loss, bytes_down, bytes_up, seconds, peak_memory_bytes,
        refused: {word: count}} per client; `owners`: one {owner, before, after} per owner of examples, of the number
        that is followed;
        `device_classes`: one {width, num_clients, num_turns, held_bytes, train_bytes, peak_memory_bytes, bytes_down,
        base_bytes, bytes_up, staleness, seconds_compute, loss, loss_round} per share of the model that clients held, of
        which the first three bytes are the largest, the others, the seconds and the rounds from request to reply
        (staleness) means per turn, and the loss is the mean of `loss_round`, the last round in which the class took
        part;
        `coverage`: None if no round says what was held, else {round, held, never, groups: one {tensors, num_tensors,
        held, never, never_max} per kind of tensors}, where `held` is the share of the clients' weight that held an
        entry in that round and `never` the share of entries that nobody has held so far, both means over tensors;
        `gate`: None without a transfer gate, else {round, limit, base_loss, plans: those of its last round, totals:
        {decision: {num_plans, num_clients}} over the run, refusals};
        `seeding`: None if the run was to have none, else {accepted, reasons, num_examples, seconds, generator, licence,
        digest, num_drafts, num_kept, filters, labels, kept_examples, rejected_examples, num_tokens, turn, losses,
        public, clients, quality: {split, metric, before, after} of the tuning alone};
        `refusals`, `warnings`, `conversations`: as they were recorded; `history`: one entry per round;
        `config`, `environment`. Numbers that are unknown or not finite are None.

    Raises:
        RunError: the folder is not a run folder or is damaged.
    """
    return summary_of(read(folder))


def summary_of(records: Records) -> dict[str, Any]:
    """The same from records that were read already."""
    follow = series.followed(records)
    curve = series.quality(records, follow.split, follow.metric) if follow else []
    losses = series.of_rounds(records, "loss")
    config = records.config
    return {
        "name": str(config.get("name") or records.folder.name),
        "folder": records.folder.name,
        "status": "finished" if records.finished else "unfinished",
        "seed": config.get("seed"),
        "rounds_done": max((record["round"] for record in records.rounds), default=0),
        "num_rounds": finite(config.get("num_rounds")),
        "followed": follow
        and {
            "split": follow.split,
            "metric": follow.metric,
            "higher_is_better": follow.higher_is_better,
        },
        "before": _at(curve[0]) if curve and curve[0][0] == 0 else None,
        "after": _at(curve[-1]) if curve and curve[-1][0] > 0 else None,
        "best": _at(follow.best(curve)) if follow else None,
        "quality": _quality(records),
        "loss": losses[-1][1] if losses else None,
        "totals": _totals(records.rounds),
        "peak_memory_bytes": {
            "rounds": _largest(record.get("peak_memory_bytes") for record in records.rounds),
            "clients": _largest(record.get("peak_memory_bytes") for record in records.clients),
        },
        "clients": _clients(records),
        "owners": _owners(records, follow),
        "device_classes": device_classes(records.clients),
        "coverage": summary_of_coverage(records),
        "gate": summary_of_gate(records),
        "seeding": summary_of_seeding(records),
        "refusals": [
            {"round": record["round"], "client": record["client"], "reason": str(record["refused"])}
            for record in records.clients
            if record.get("refused")
        ],
        "warnings": [{"round": record["round"], "text": _said(record, "text")} for record in records.warnings],
        "conversations": [
            {key: _said(record, key) for key in ("text", "expected", "before", "after")}
            for record in records.conversations
        ],
        "history": [_round(record, follow) for record in records.rounds],
        "config": plain(config),
        "environment": plain(records.environment),
    }


def _quality(records: Records) -> list[Record]:
    names = {
        (split, metric): None
        for record in records.rounds
        for split, numbers in series.evaluation(record).items()
        for metric in series.metric_names(numbers)
    }
    rows = []
    for split, metric in names:
        points = series.quality(records, split, metric)
        before, after = _ends(points)
        if points:
            rows.append({"split": split, "metric": metric, "before": before, "after": after, "round": points[-1][0]})
    return rows


def _totals(rounds: Iterable[Record]) -> Record:
    rounds = list(rounds)
    return {
        "bytes_down": _sum(record.get("bytes_down") for record in rounds),
        "bytes_up": _sum(record.get("bytes_up") for record in rounds),
        "num_refused": _sum(record.get("num_refused") for record in rounds),
        "seconds": {part: _sum(series.seconds(record, part) for record in rounds) for part in (*SECONDS, "total")},
    }


def _clients(records: Records) -> list[Record]:
    turns: dict[str, list[Record]] = {}
    for record in records.clients:
        turns.setdefault(record["client"], []).append(record)
    return [_client(client, turns[client]) for client in sorted(turns, key=natural)]


def _client(client: str, turns: list[Record]) -> Record:
    losses = [loss for turn in turns if (loss := finite(turn.get("loss"))) is not None]
    return {
        "client": client,
        "num_examples": finite(turns[-1].get("num_examples")),
        "num_rounds": len(turns),
        "loss": losses[-1] if losses else None,
        "bytes_down": _sum(turn.get("bytes_down") for turn in turns),
        "bytes_up": _sum(turn.get("bytes_up") for turn in turns),
        "seconds": {part: _sum(series.seconds(turn, part) for turn in turns) for part in ("compute", "wire", "wait")},
        "peak_memory_bytes": _largest(turn.get("peak_memory_bytes") for turn in turns),
        "refused": dict(Counter(str(turn["refused"]) for turn in turns if turn.get("refused"))),
    }


def _owners(records: Records, follow: Followed | None) -> list[Record]:
    if follow is None:
        return []
    curves = series.quality_by_owner(records, follow.split, follow.metric)
    return [{"owner": owner, **dict(zip(("before", "after"), _ends(curves[owner]), strict=True))} for owner in curves]


def _round(record: Record, follow: Followed | None) -> Record:
    numbers = series.evaluation(record).get(follow.split, {}) if follow else {}
    return {
        "round": record["round"],
        **{
            key: finite(record.get(key))
            for key in ("num_clients", "num_refused", "num_late", "num_pending", "loss", "bytes_down", "bytes_up")
        },
        "peak_memory_bytes": finite(record.get("peak_memory_bytes")),
        "quality": finite(numbers.get(follow.metric)) if follow else None,
        "seconds": {part: series.seconds(record, part) for part in (*SECONDS, "total")},
    }


def _ends(points: Points) -> tuple[Number | None, Number | None]:
    """The value before training, if it was taken, and the newest one after it."""
    before = points[0][1] if points and points[0][0] == 0 else None
    after = points[-1][1] if points and points[-1][0] > 0 else None
    return before, after


def _at(point: tuple[int, Number] | None) -> Record | None:
    return None if point is None else {"round": point[0], "value": point[1]}


def _said(record: Mapping[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else str(record[key])


def _sum(values: Iterable[object]) -> Number | None:
    """The sum of the known values; None if none is known."""
    known = series.known(values)
    return sum(known) if known else None


def _largest(values: Iterable[object]) -> Number | None:
    return max(series.known(values), default=None)
