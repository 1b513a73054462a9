"""``fedgen synthesize``: makes a synthetic set on its own, filters it, shows what was kept and why, and exports it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.cli.train import compose
from fedgen.config import check
from fedgen.config.catalogue import task_file
from fedgen.errors import ConfigError, RunError
from fedgen.generating import Generator
from fedgen.stages import Model
from fedgen.synthesis.filters import Evidence, Filters
from fedgen.synthesis.making import Synthesis
from fedgen.synthesis.synthetic_set import SyntheticSet
from fedgen.task import Task
from fedgen.task_file import read_task
from fedgen.types import Example, Record

PER_LABEL = 200
"""Examples of each label where no number is given, as many as GPT-FL has prompts of each."""


@dataclass(frozen=True)
class Wanted:
    """What was typed.

    Attributes:
        words: a task (a name, or a file) and overrides, in any order.
        num: examples; None for a number that goes by the labels.
        seed: of every draw.
        surplus: drafts asked for, as a multiple of the examples.
        to: folder for the examples; None for none besides the cache.
        against: jsonl file or folder of evaluation examples that no text may overlap with.
        reference: jsonl file or folder of public examples that set what is usual.
        as_json: print one object.
    """

    words: Sequence[str]
    num: int | None
    seed: int
    surplus: float
    to: Path | None
    against: Path | None
    reference: Path | None
    as_json: bool


def synthesize(wanted: Wanted) -> int:
    """Makes the set, or finds it in the cache; shows and exports it.

    Raises:
        FedgenError: the task or the settings are wrong, a label ends empty, or a folder cannot be written.
    """
    if wanted.to is not None and wanted.to.exists() and not (wanted.to.is_dir() and not any(wanted.to.iterdir())):
        raise RunError(f"{wanted.to} exists and is no empty folder; name another with --to, nothing was made")
    overrides = [word for word in wanted.words if "=" in word]
    names = [word for word in wanted.words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"got {len(names)} tasks ({', '.join(names)}); give one, and settings as KEY=VALUE")
    task = read_task(task_file(names[0] if names else "smart_home"))
    generator, model, filters = _built(overrides, task)
    # Everything from here on needs torch.
    from fedgen.model.source import cache_folder

    num = PER_LABEL * len(task.labels) if wanted.num is None else wanted.num
    evidence = _evidence(wanted, task, model if task.kind == "commands" and filters.perplexity_quantiles else None)
    try:
        synthesis = Synthesis(task, generator, num, wanted.seed, wanted.surplus, filters=filters, evidence=evidence)
    except ValueError as error:
        raise ConfigError(f"{error} (--num, --surplus)") from error
    made = _carried_out(synthesis, cache_folder() / "synthetic", quiet=wanted.as_json)
    if wanted.to is not None:
        made.export(wanted.to)
    if wanted.as_json:
        print(json.dumps({"folder": str(made.folder), **made.summary()}))
    else:
        _show(made, wanted.to)
    return 0


def _built(overrides: Sequence[str], task: Task) -> tuple[Generator, Model, Filters]:
    """Generator, model and filters from overrides.

    Raises:
        ConfigError: some are wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    own = [override.removeprefix("filters.") for override in overrides if override.startswith("filters.")]
    others = [override for override in overrides if not override.startswith("filters.")]
    if task.kind == "sensor" and not any(override.startswith("generator=") for override in others):
        others = ["generator=timeseries", *others]
    config = compose(others, "synthesize")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(own))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"cannot read filters.{', filters.'.join(own)}: {error}") from error
    assert isinstance(given, dict)
    filters = check.build_node({"_target_": check.FILTERS, **given}, "filters")
    generator = check.build_node(config["generator"], "generator")
    model = check.build_node(config["model"], "model")
    assert isinstance(filters, Filters)
    assert isinstance(generator, Generator)
    assert isinstance(model, Model)
    return generator, model, filters


def _evidence(wanted: Wanted, task: Task, model: Model | None) -> Evidence:
    """What drafts are held against; loads the model, if there is one.

    Raises:
        FedgenError: a file of examples or the model cannot be read.
    """
    evaluation = _examples(wanted.against) if wanted.against else ()
    reference = tuple(example.text for example in _examples(wanted.reference)) if wanted.reference else ()
    if model is None:
        return Evidence(reference=reference, evaluation=evaluation)
    from fedgen.synthesis.likelihood import by_learner, opening

    base = model.load(wanted.seed)
    learner = base.learner(base.replica(private=False), {})
    return Evidence(
        likelihood=by_learner(learner, opening(task)),
        likelihood_of=base.fingerprint,
        reference=reference,
        evaluation=evaluation,
        template_tokens=tuple(sorted(set(learner.tokenizer.all_special_tokens))),
    )


def _examples(path: Path) -> tuple[Example, ...]:
    from fedgen.data.jsonl import Jsonl

    # Measured on the same rows, so that none of them is held out.
    return Jsonl(str(path), eval_path=str(path)).load(0).train


def _carried_out(synthesis: Synthesis, cache: Path, *, quiet: bool) -> SyntheticSet:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    with console.status("planning") as status:

        def observe(record: Record) -> None:
            if record["kind"] == "drafting":
                status.update(f"{record['drafts']} drafts, batch {record['batches']} of {record['of']}")
            elif record["kind"] == "sifting":
                status.update(f"filtering {record['drafts']} drafts")
            elif record["kind"] == "found":
                console.print("The cache has this set already.")

        return synthesis.carry_out(cache, observe)


def _show(made: SyntheticSet, to: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, report = Console(), made.summary()
    table = Table("filter", "drafts", "rejected", "because", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in report["filters"]:
        told = row["notes"].get("skipped")
        for number, (reason, count) in enumerate(row["reasons"].items() or [(f"skipped: {told}" if told else "", 0)]):
            first = (row["filter"], str(row["drafts"])) if number == 0 else ("", "")
            table.add_row(*first, str(count) if count else "", escape(reason))
    console.print(table)
    labels = Table("label", "wanted", "drafts", "kept", box=box.SIMPLE_HEAD, pad_edge=False)
    for label, counts in report["labels"].items():
        labels.add_row(escape(_printable(label)), *(str(counts[column]) for column in ("wanted", "drafts", "kept")))
    console.print(labels)
    for example in report["kept_examples"]:
        console.print(_line("kept", example))
    for reason, examples in report["rejected_examples"].items():
        for example in examples[:1]:
            console.print(_line(reason, example))
    console.print(f"\n{report['kept']} of {report['drafts']} drafts kept. Licence: {escape(made.licence)}")
    console.print(str(made.folder), soft_wrap=True, markup=False, highlight=False)
    if to is not None:
        console.print(f"fedgen train data=jsonl data.path={to}", soft_wrap=True, markup=False, highlight=False)


def _line(what: str, example: Mapping[str, Any]) -> str:
    from rich.markup import escape

    text, answer = (_printable(example[name]) for name in ("text", "answer"))
    return f"[dim]{escape(what)}:[/] {escape(text)} [dim]→[/] {escape(answer)}"


def _printable(text: str, length: int = 160) -> str:
    """What a model wrote, as it may be shown: it could steer the terminal.

    >>> _printable("lamp" + chr(27) + "[2J on")
    'lamp�[2J on'
    """
    shown = text if len(text) <= length else f"{text[: length - 1]}…"
    return "".join(character if character.isprintable() else "\ufffd" for character in shown)
