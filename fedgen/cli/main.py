"""The command ``fedgen``: one verb per thing to do. Only the standard library is imported until a verb needs more.

Exit codes: 0 fine, 2 the user's mistake (one message, no traceback), 130 interrupted; a defect keeps its traceback
and gives 1.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedgen.errors import FedgenError

USER_ERROR = 2
INTERRUPTED = 130

OVERVIEW = """\
Fine-tune one generative model on many devices whose data never leaves them.

Three things to try:
  fedgen train recipe=tiny                      everything real but the size; seconds, no download
  fedgen train                                  four smart homes teach SmolLM2-135M their commands
  fedgen generate runs/<run> "turn on the lamp in the kitchen"
                                                talk to the model that a run has tuned

A run lands in runs/<date>-<name>/ (set FEDGEN_RUNS to put runs elsewhere): its resolved experiment.yaml, metrics.jsonl,
checkpoints/, the tuned adapter/, and report.html to look at. Kill it whenever you like:
fedgen resume goes on where it was.
"""

TRAIN = """\
usage: fedgen train [KEY=VALUE ...] [recipe=NAME] [-m] [--cfg job]

Trains, and leaves a run folder behind. Without arguments: four smart homes on SmolLM2-135M-Instruct.

Change a value      fedgen train num_rounds=10 client.learning_rate=1e-3
Swap a stage        fedgen train model=tiny data=synthetic partition=dirichlet partition.num_clients=10
Your own data       fedgen train data=jsonl data.path=FOLDER          one <owner>.jsonl per owner
A whole recipe      fedgen train recipe=tiny seed=3                   what you type overrides the recipe
Sweep               fedgen train -m seed=1,2,3 client.learning_rate=1e-3,2e-3
                    one run per combination in one folder, compared at the end
Look, do not run    fedgen train --cfg job                            every value that would be used

What there is       fedgen options                                    stages and their options
                    fedgen options client.first_order                 the keys of one option
Recipes             {recipes}

Values are yaml: null, true, 1e-3, text, [a,b]. The composer is Hydra, whose own flags (--info, --config-dir) work
as well. Runs land in runs/, or in the folder that the environment variable FEDGEN_RUNS names.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Before torch is imported: threads that spin while they wait take the core from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        if given[:1] == ["train"]:
            return _train(given[1:])
        return _dispatch(_parser().parse_args(given))
    except FedgenError as error:
        print(f"fedgen: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("fedgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has closed it (`fedgen options | head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the overview as it is, and each verb on a line with its text."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, indent_increment=1, width=118)


def _train(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        from fedgen.config.catalogue import recipes

        print(TRAIN.format(recipes=f"\n{'':20}".join(f"recipe={name:<12} {text}" for name, text in recipes().items())))
        return 0
    from fedgen.cli.train import train

    return train(arguments)


def _dispatch(given: argparse.Namespace) -> int:
    if "carry_out" in given:
        return int(given.carry_out(given))
    if given.verb == "report":
        from fedgen.cli import reports

        return reports.show(given.runs, given.out)
    if given.verb in ("resume", "export", "generate"):
        from fedgen.cli import runs

        if given.verb == "resume":
            return runs.resume(given.run)
        if given.verb == "export":
            return runs.export(given.run, given.option, given.to)
        return runs.generate(given.run, given.text, given.max_new_tokens)
    if given.verb == "plan":
        from fedgen.cli.plan import plan

        return plan(given.overrides, given.memory, measure=given.measure, as_json=given.json)
    if given.verb == "synthesize":
        from fedgen.cli.synthesize import Wanted, synthesize

        typed = {name: value for name, value in vars(given).items() if name != "verb"}
        return synthesize(Wanted(**typed))
    if given.verb == "benchmark":
        from fedgen.cli.benchmark import benchmark

        return benchmark(given.name, as_json=given.json)
    from rich.console import Console

    from fedgen.cli.catalogue import show

    show(given.what, Console())
    return 0


def _parser() -> argparse.ArgumentParser:
    import fedgen

    parser = argparse.ArgumentParser("fedgen", description=OVERVIEW, formatter_class=_Formatter)
    parser.add_argument("--version", action="version", version=f"fedgen {fedgen.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    verbs.add_parser("train", help="train, or sweep over many settings; fedgen train --help says how")
    resume = verbs.add_parser("resume", help="go on with a run that was interrupted, bit for bit")
    _add_run(resume)
    report = verbs.add_parser("report", help="write a run's report.html, or compare several runs or a sweep")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or the folder of a sweep")
    report.add_argument("--out", type=Path, metavar="FILE", help="where the page goes")
    export = verbs.add_parser("export", help="write the tuned model: an adapter for PEFT, or the whole model merged")
    _add_run(export)
    export.add_argument("option", nargs="?", help="adapter or merged; the run's own if not given")
    export.add_argument("--to", type=Path, metavar="FOLDER", help="where it goes; inside the run if not given")
    generate = verbs.add_parser("generate", help="ask the tuned model")
    _add_run(generate)
    generate.add_argument("text", help="what to say to it")
    generate.add_argument(
        "--max-new-tokens", type=_positive, default=64, metavar="N", help="longest answer (default 64)"
    )
    options = verbs.add_parser("options", help="list stages, the options of a stage, or the keys of an option")
    options.add_argument("what", nargs="?", metavar="STAGE[.OPTION]", help="model, or model.tiny")
    plan = verbs.add_parser("plan", help="say whether a model fits a device, and how it would be trained there")
    plan.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as fedgen train takes them")
    plan.add_argument(
        "--memory", metavar="SIZE", help="what the device's process may hold (900M); else the fleet's boards"
    )
    plan.add_argument("--measure", action="store_true", help="time the reference step on this machine besides")
    plan.add_argument("--json", action="store_true", help="print one object")
    _add_synthesize(verbs.add_parser("synthesize", help="write training data from a task's public description"))
    benchmark = verbs.add_parser("benchmark", help="measure a claim about speed or memory on this machine")
    benchmark.add_argument("name", metavar="NAME", help="an unknown name lists the known")
    benchmark.add_argument("--json", action="store_true", help="print one object {figure: {value, bound, holds}}")
    _add_deployment(verbs)
    return parser


def _add_synthesize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TASK KEY=VALUE",
        help="a task that comes with fedgen (smart_home if none is given) or a yaml file of your own; then settings: "
        "generator=language, generator.KEY=VALUE, filters.KEY=VALUE, model.KEY=VALUE",
    )
    parser.add_argument("--num", type=_positive, metavar="N", help="examples (200 for each label if not given)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="fixes every draw (default 0)")
    parser.add_argument(
        "--surplus", type=float, default=1.25, metavar="X", help="drafts for each example that is wanted (default 1.25)"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where examples.jsonl goes, for data=jsonl")
    parser.add_argument("--against", type=Path, metavar="PATH", help="jsonl that nothing may overlap with")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="public jsonl that says what texts are usual")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one object")


def _add_deployment(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from fedgen.cli import deploy, watch

    deploy.add_verbs(verbs)
    watch.add_verbs(verbs)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, runs/<date>-<name>")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
