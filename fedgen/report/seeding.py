"""How a federation was seeded: what the generator wrote, what the filters left, tuning, and how the trial ended."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedgen.report import series, text
from fedgen.report.records import Record, Records, finite

NUM_SHOWN = 3
"""Examples on the page, kept ones and rejected ones for each reason."""

LONGEST = 200


def summary_of_seeding(records: Records) -> Record | None:
    """What there is to say of the seed, as `fedgen.report.summarise` tells it; None if the run was to have none."""
    if records.seed is None:
        return None
    line = records.seed
    synthetic, tuning = _mapping(line.get("synthetic")), _mapping(line.get("tuning"))
    follow = series.followed(records)
    return {
        "accepted": line.get("accepted") is True,
        "reasons": [str(reason) for reason in _list(line.get("reasons"))],
        "num_examples": finite(line.get("num_examples")),
        "seconds": {name: finite(value) for name, value in _mapping(line.get("seconds")).items()},
        "generator": synthetic.get("generator"),
        "licence": synthetic.get("licence"),
        "digest": synthetic.get("digest"),
        "num_drafts": finite(synthetic.get("drafts")),
        "num_kept": finite(synthetic.get("kept")),
        "filters": [_filter(row) for row in _list(synthetic.get("filters")) if isinstance(row, Mapping)],
        "labels": _labels(_mapping(synthetic.get("labels"))),
        "kept_examples": [_example(row) for row in _list(synthetic.get("kept_examples"))],
        "rejected_examples": {
            str(reason): [_example(row) for row in _list(rows)]
            for reason, rows in _mapping(synthetic.get("rejected_examples")).items()
        },
        "num_tokens": finite(tuning.get("num_tokens")),
        "turn": finite(tuning.get("turn")),
        "losses": [
            {key: finite(row.get(key)) for key in ("turn", "loss", "held_out")}
            for row in _list(tuning.get("losses"))
            if isinstance(row, Mapping)
        ],
        "public": {end: _numbers(_mapping(line.get("public")).get(end)) for end in ("before", "after")},
        "clients": _numbers(line.get("clients")),
        "quality": _quality(_mapping(line.get("evaluation")), follow.metric) if follow else None,
    }


def sentence(summary: Record | None) -> str:
    """How it ended, in the words of the page."""
    if summary is None:
        return ""
    wrote = (
        f"{text.plural(int(summary['num_examples'] or 0), 'example')} that nobody's data went into"
        if summary["generator"]
        else f"{text.plural(int(summary['num_examples'] or 0), 'public example')}"
    )
    if not summary["accepted"]:
        return (
            f"The adapter was tuned on {wrote}. That was refused, and the federation began without: "
            f"{'; '.join(summary['reasons'])}."
        )
    quality = summary["quality"]
    ends = (
        f" {text.words(quality['metric'])} on {text.words(quality['split'])} went from "
        f"{text.number(quality['before'])} to {text.number(quality['after'])} by that alone."
        if quality
        else ""
    )
    return f"Before the first round the adapter was tuned on {wrote}, and clients began from there.{ends}"


def step(record: Mapping[str, Any]) -> str:
    """What is going on, in the words of the terminal."""
    match record.get("kind"):
        case "drafting":
            return f"{record['drafts']} drafts, batch {record['batches']} of {record['of']}"
        case "sifting":
            return f"filtering {record['drafts']} drafts"
        case "found":
            return "the cache has this set already"
        case "tuning":
            loss, held_out = (text.number(finite(record.get(key))) for key in ("loss", "held_out"))
            return f"turn {record['turn']} of {record['of']}, loss {loss}, on held-out examples {held_out}"
        case _:
            return f"asking {text.plural(len(record.get('clients') or ()), 'client')} what it is worth"


def outcome(record: Mapping[str, Any]) -> str:
    """How it ended, in one line."""
    taken = text.seconds(sum(finite(value) or 0 for value in _mapping(record.get("seconds")).values()))
    examples = text.plural(int(finite(record.get("num_examples")) or 0), "example")
    return f"{'accepted' if record.get('accepted') is True else 'refused'}, {examples}, in {taken}"


def _filter(row: Mapping[str, Any]) -> Record:
    reasons = {str(reason): finite(number) for reason, number in _mapping(row.get("reasons")).items()}
    skipped = _mapping(row.get("notes")).get("skipped")
    return {
        "filter": str(row.get("filter")),
        "num_drafts": finite(row.get("drafts")),
        "reasons": reasons,
        "skipped": None if skipped is None else str(skipped),
    }


def _labels(labels: Mapping[str, Any]) -> list[Record]:
    rows = [(str(label), _mapping(row)) for label, row in labels.items()]
    return [
        {"label": label, **{key: finite(row.get(key)) for key in ("wanted", "drafts", "kept")}} for label, row in rows
    ]


def _example(row: object) -> Record:
    """What a model wrote, cut to a length; the page and the terminal clean it where they show it."""
    found = _mapping(row)
    return {key: str(found.get(key, ""))[:LONGEST] for key in ("label", "text", "answer")}


def _quality(evaluation: Mapping[str, Any], metric: str) -> Record | None:
    """The followed number of the first split, before and after tuning."""
    before, after = (_mapping(evaluation.get(end)) for end in ("before", "after"))
    for split in after:
        ends = [finite(_mapping(side.get(split)).get(metric)) for side in (before, after)]
        return {"split": str(split), "metric": metric, "before": ends[0], "after": ends[1]}
    return None


def _numbers(value: object) -> Record | None:
    found = _mapping(value)
    return {str(key): finite(number) for key, number in found.items()} if found else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []
