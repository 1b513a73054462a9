"""The model card: where the model came from, how it was trained, and what it can do."""

import json
from pathlib import Path

from fedgen.types import Card

HIDDEN = ("federation", "export", "data.path")
"""Settings that say where files lie or how the run was driven, and nothing about the model."""


def write_card(folder: Path, card: Card, usage: str, tags: tuple[str, ...]) -> None:
    """Writes README.md with the front matter of model hubs.

    Args:
        folder: of the exported model.
        card: what to tell.
        usage: Python code that loads the model.
        tags: what kind of export it is.
    """
    front = ["---", f"base_model: {json.dumps(card.base)}", "library_name: " + tags[0], "pipeline_tag: text-generation"]
    front += ["tags:", *(f"- {tag}" for tag in (*tags, "federated-learning", "fedgen")), "---"]
    metrics = list(dict.fromkeys(metric for numbers in card.results.values() for metric in numbers))
    rows = [
        f"| {split.replace('_', ' ')} | "
        + " | ".join("{:.3f} → {:.3f}".format(*numbers[m]) if m in numbers else "" for m in metrics)
        + " |"
        for split, numbers in card.results.items()
    ]
    settings = {k: v for k, v in card.settings.items() if not k.startswith(HIDDEN)}
    lines = [
        *front,
        f"# {card.name}",
        "",
        f"Fine-tuned from `{card.base}` by federated learning with fedgen: the examples stayed with their owners, and "
        "only changes of the trained tensors were sent. That alone is no proof of privacy.",
        "",
        "## Data",
        "",
        card.description or "Not described.",
        "",
        "## Results",
        "",
        "Before → after training.",
        "",
        "| split | " + " | ".join(m.replace("_", " ") for m in metrics) + " |",
        "|---|" + "---|" * len(metrics),
        *rows,
        "",
        "## Use",
        "",
        "```python",
        usage.strip(),
        "```",
        "",
        "## Federation",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `{key}` | {_cell(value)} |" for key, value in settings.items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
