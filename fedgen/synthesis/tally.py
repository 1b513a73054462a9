"""What became of the drafts, as plain JSON: counts by filter, reason and label, and some examples of each."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fedgen.synthesis.filters import Rejection, Sifted
from fedgen.task import Draft


def tally(drafts: Sequence[Draft], sifted: Sifted, quotas: Mapping[str, int], num_shown: int) -> dict[str, Any]:
    """Counts and examples.

    Args:
        drafts: all that the generator proposed.
        sifted: what the filters made of them.
        quotas: label of the task → how many examples were wanted.
        num_shown: kept drafts in all, and rejected drafts for each reason.

    Returns:
        ``drafts`` and ``kept``, numbers; ``filters``, in order, each with ``filter``, ``drafts`` that came to it,
        ``reasons`` → how many, and its ``notes``; ``labels`` → ``wanted``, ``drafts``, ``kept`` and ``reasons``;
        ``kept_examples`` and, by reason, ``rejected_examples``, each with label, text and answer.
    """
    left, rows = len(drafts), []
    for name, notes in sifted.notes.items():
        reasons = _counts(rejection for rejection in sifted.rejected if rejection.filter == name)
        rows.append({"filter": name, "drafts": left, "reasons": reasons, "notes": dict(notes)})
        left -= sum(reasons.values())
    proposed, kept = Counter(draft.label for draft in drafts), Counter(draft.label for draft in sifted.kept)
    by_label = {
        label: {
            "wanted": quotas.get(label, 0),
            "drafts": proposed[label],
            "kept": kept[label],
            "reasons": _counts(rejection for rejection in sifted.rejected if rejection.draft.label == label),
        }
        for label in [*quotas, *sorted(set(proposed) - set(quotas))]
    }
    rejected: dict[str, list[dict[str, str]]] = {}
    for rejection in sifted.rejected:
        shown = rejected.setdefault(rejection.reason, [])
        if len(shown) < num_shown:
            shown.append(_shown(rejection.draft))
    return {
        "drafts": len(drafts),
        "kept": len(sifted.kept),
        "filters": rows,
        "labels": by_label,
        "kept_examples": [_shown(draft) for draft in _in_turn(sifted.kept)[:num_shown]],
        "rejected_examples": rejected,
    }


def complaint(report: Mapping[str, Any], empty: Collection[str]) -> str:
    """Why labels are empty, a line for each."""
    lines = []
    for label in empty:
        told = report["labels"][label]
        reasons = "; ".join(f"{number} × {reason}" for reason, number in told["reasons"].items())
        lines.append(f"{label}: {told['drafts']} drafts, none kept{f' ({reasons})' if reasons else ''}")
    return "\n  ".join(lines)


def _counts(rejections: Iterable[Rejection]) -> dict[str, int]:
    return dict(Counter(rejection.reason for rejection in rejections).most_common())


def _shown(draft: Draft) -> dict[str, str]:
    return {"label": draft.label, "text": draft.text, "answer": draft.answer}


def _in_turn(drafts: Sequence[Draft]) -> list[Draft]:
    """The first of each label, then the second of each."""
    turns, counts = [], Counter[str]()
    for place, draft in enumerate(drafts):
        turns.append((counts[draft.label], place))
        counts[draft.label] += 1
    return [drafts[place] for _, place in sorted(turns)]
