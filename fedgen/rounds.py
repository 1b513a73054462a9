"""The one loop: a round as the paper has it, the server's half. ``device`` has the other.

FedAvg: McMahan et al., AISTATS 2017, Algorithm 1. Drivers differ in their ``Transport`` and in nothing else. Replies
are folded as they come and dropped; nothing that a client sends can stop the run.
"""

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedgen import checkpoint, records
from fedgen.asking import Asking, taking_part, wanted_parts
from fedgen.checkpoint import Checkpoint
from fedgen.coverage import Coverage, warn_of_gaps
from fedgen.disk import replace_folder
from fedgen.errors import RunError
from fedgen.experiment import Experiment
from fedgen.gate import Gate
from fedgen.journal import Journal, read
from fedgen.late import FACT, Late, left, lines_of
from fedgen.learner import Learner
from fedgen.measure import converse, evaluate
from fedgen.parts import Ground
from fedgen.planner import Planner
from fedgen.replies import Replies
from fedgen.run import Run
from fedgen.sowing import FACT as SEEDED
from fedgen.sowing import Sowing
from fedgen.transport import Transport
from fedgen.types import Card, Example, Observer, Record, State
from fedgen.workers import Workers

MAX_IDLE_ROUNDS = 3
"""A run stops after so many rounds in a row without a single usable update."""


@dataclass(frozen=True)
class Server:
    """What the loop works with.

    Attributes:
        gate: decides which parts are sent.
        run: the folder that keeps everything.
        transport: reaches the devices.
        workers: learners of the server itself, for evaluation and export.
        splits: examples to be measured on.
        facts: base, data and card text; a checkpoint of other facts is not continued.
        observe: is told of each thing as it happens.
        planner: decides how devices work that tell their memory; None if none does.
        public: examples that anybody may see; a seed is judged by them.
    """

    gate: Gate
    run: Run
    transport: Transport
    workers: Workers
    splits: Mapping[str, Sequence[Example]]
    facts: Mapping[str, str]
    observe: Observer
    planner: Planner | None = None
    public: Sequence[Example] = ()

    @property
    def ground(self) -> Ground:
        """What is known before the first round."""
        return self.gate.ground

    @property
    def experiment(self) -> Experiment:
        """What to do."""
        return self.gate.ground.experiment

    @functools.cached_property
    def sowing(self) -> Sowing:
        """Seeds the federation."""
        return Sowing(self.gate, self.transport, self.planner, self.public, self.splits, self.observe)


def serve(server: Server) -> None:
    """Carries a run through to its end, from its newest valid checkpoint if there is one.

    Raises:
        RunError: the folder cannot be written, its checkpoints are all damaged, or three rounds gave no usable update.
    """
    experiment, folder = server.experiment, server.run.checkpoints
    identity = hashlib.sha256(server.run.experiment_file.read_bytes()).hexdigest()
    initial = server.workers.borrow(experiment.initial_state)
    found, warnings = _newest(server, identity)
    coverage = Coverage(server.ground)
    with Journal.open(server.run.metrics_file, after_round=found.round if found else -1) as journal:
        for text in warnings:
            _tell(server, journal, [records.warning(found.round if found else 0, text)])
        begin = found.round + 1 if found else 0
        server.observe(records.start(experiment, str(server.run.path), server.ground.clients, begin))
        if found is None:
            warnings = [*warn_of_gaps(server.ground), *server.gate.warn_of_residual(initial)]
            _tell(server, journal, [records.warning(0, text) for text in warnings])
            state, told = server.sowing.sow(initial)
            facts = {"idle_rounds": 0, SEEDED: state is not initial, **server.facts}
            found = Checkpoint(0, state, experiment.aggregation.init(state), facts)
            journal.write([*told, _round_zero(server, state)])
            checkpoint.save(folder, found, identity=identity)
        else:
            coverage.replay(read(server.run.metrics_file), lines_of(found))
        while found.round < experiment.num_rounds:
            found, lines = play(server, found, coverage)
            # Journal first: lines beyond the newest checkpoint are dropped on resume, lost lines cannot be made again.
            journal.write(lines)
            found = found.within(checkpoint.save(folder, found, identity=identity))
        _finish(server, journal, initial, found)


def play(server: Server, before: Checkpoint, coverage: Coverage) -> tuple[Checkpoint, list[Record]]:
    """One round: choose, send, fold the replies, apply, measure."""
    experiment, state, round = server.experiment, before.state, before.round + 1
    began = time.perf_counter()
    devices, declined = taking_part(server.ground, server.planner, server.transport, round)
    late = Late(before, server.run.checkpoints)
    cohort = experiment.cohort(sorted(devices.keys() - late.busy), round)
    asked = {client: devices[client] for client in cohort}
    wanted, plans = wanted_parts(server.ground, server.planner, asked, round, coverage.missed)
    parts, verdict = server.gate.admit(wanted, state, round, plans.keys())
    delayed = [client for client in sorted(parts) if devices[client].delay]
    due = [line["client"] for line, _ in late.due]
    server.observe({"kind": "dispatch", "round": round, "clients": sorted(parts), "late": delayed, "due": due})
    replies = Replies(server.ground, state, round, parts, coverage, server.run.path, late)
    replies.take_due(server.observe)
    asking = Asking(parts, devices, plans, coverage, replies.sent)
    server.transport.send(asking.requests(server.ground, state, round))
    for reply in server.transport.receive():
        replies.take(reply, server.observe)
    replies.close()
    applied = time.perf_counter()
    state, central = experiment.aggregation.apply(state, before.server, replies.total)
    if before.facts.get(SEEDED) and experiment.seeding is not None and experiment.seeding.healing_share:
        state = server.sowing.heal(state, round)
    on_their_way, attached = late.close()
    last = round == experiment.num_rounds
    warnings = [*replies.warnings, *_left_out(round, replies.lines)]
    warnings += [records.warning(round, left(late.lines))] if last and late.lines else []
    for warning in warnings:
        server.observe(warning)
    summary = records.round(experiment, round, replies.lines) | {"num_pending": len(late.lines)}
    summary |= {"coverage": coverage.end_round()} | ({"gate": verdict} if verdict else {})
    summary |= {"declined": declined} if declined else {}
    summary |= {} if replies.diversity is None else {"gradient_diversity": replies.diversity.value()}
    summary["seconds"]["aggregate"] = time.perf_counter() - applied
    if last or round % experiment.evaluate_every == 0:
        _measure(server, state, summary, whole=last)
    summary["seconds"]["total"] = time.perf_counter() - began
    server.observe(summary)
    idle = _idle_rounds(int(before.facts["idle_rounds"]), summary)
    if idle >= MAX_IDLE_ROUNDS:
        raise RunError(_why_idle(server, before.round, idle, replies.lines))
    facts = {**before.facts, "idle_rounds": idle, FACT: on_their_way}
    return Checkpoint(round, state, central, facts, attached), [*replies.lines, *warnings, summary]


def _idle_rounds(before: int, summary: Record) -> int:
    """Rounds in a row without a usable update; one in which nothing was due does not count while something is."""
    if summary["num_refused"] < summary["num_clients"]:
        return 0
    return before if summary["num_pending"] and not summary["num_clients"] else before + 1


def _left_out(round: int, lines: Sequence[Record]) -> list[Record]:
    reasons = {
        "num_left_out": "truncation leaves them no answer; raise model.max_length",
        "num_not_held": "their parts lack some of their tokens; let devices be wider, or use extraction=importance",
    }
    counts = {word: [line[word] for line in lines if line[word]] for word in reasons}
    return [
        records.warning(round, f"{sum(found)} examples of {len(found)} clients are left out: {reasons[word]}")
        for word, found in counts.items()
        if found
    ]


def _why_idle(server: Server, round: int, idle: int, lines: Sequence[Record]) -> str:
    reasons = sorted({str(line["refused"]) for line in lines})
    advice = (
        f"({', '.join(reasons)}). With non_finite_loss, lower client.learning_rate"
        if reasons
        else "(the transfer gate sent no part to anybody). Raise gate_margin, or let devices be wider"
    )
    kept = f"the state of round {round} is kept in {server.run.checkpoints}"
    return f"no client sent a usable update in {idle} rounds in a row {advice}; {kept}"


def _measure(server: Server, state: State, record: Record, *, whole: bool) -> None:
    server.observe({"kind": "evaluate", "round": record["round"]})
    began = time.perf_counter()
    record["evaluation"] = evaluate(server.experiment, server.workers, state, server.splits, whole=whole)
    record["seconds"]["evaluate"] = time.perf_counter() - began


def _round_zero(server: Server, initial: State) -> Record:
    began = time.perf_counter()
    record = records.round(server.experiment, 0, [])
    _measure(server, initial, record, whole=True)
    record["seconds"]["total"] = time.perf_counter() - began
    server.observe(record)
    return record


def _newest(server: Server, identity: str) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, if there is any, and what was found wrong with others."""
    folder = server.run.checkpoints
    checkpoint.sweep(folder)
    if not any(folder.iterdir()):
        return None, []
    found, warnings = checkpoint.load_latest(folder, identity=identity)
    for name, value in server.facts.items():
        if found.facts.get(name) != value:
            raise RunError(
                f"the {name} of this run has changed since it began (then {found.facts.get(name)}, now {value}); a run "
                "is only continued with what it began with. Put it back, or start a new run"
            )
    return found, warnings


def _finish(server: Server, journal: Journal, initial: State, final: Checkpoint) -> None:
    """Conversations, export, and the line that says that the run is over. Can be done again after a crash."""
    lines = read(server.run.metrics_file)
    if any(line["kind"] == "end" for line in lines):
        return
    _tell(server, journal, converse(server.workers, initial, final.state, server.splits, final.round))
    card = card_of(server.experiment, lines, server.facts["description"])

    def export(learner: Learner) -> None:
        learner.load(final.state)
        with replace_folder(server.run.path / server.experiment.export.folder_name) as folder:
            server.experiment.export.write(learner, folder, card)

    server.workers.borrow(export)
    seconds = sum(line["seconds"]["total"] for line in lines if line["kind"] == "round")
    _tell(server, journal, [{"kind": "end", "round": final.round, "seconds": seconds}])


def card_of(experiment: Experiment, lines: Sequence[Record], description: str) -> Card:
    """What a model card tells, from the lines of a run's journal as far as it has come."""
    # Without examples to be measured on there is nothing to tell.
    rounds = [line["evaluation"] for line in lines if line["kind"] == "round" and line["evaluation"]] or [{}]
    first, last = rounds[0], rounds[-1]
    results: dict[str, dict[str, tuple[float, float]]] = {}
    for split, numbers in last.items():
        for metric, after in numbers.items():
            before = first.get(split, {}).get(metric)
            # What was not a number stands as null in the journal.
            if metric != "owners" and before is not None and after is not None:
                results.setdefault(split, {})[metric] = before, after
    settings = experiment.settings()
    base = settings.get("model.source", settings["model"])
    return Card(experiment.name, base, description, settings, results)


def _tell(server: Server, journal: Journal, told: Sequence[Record]) -> None:
    journal.write(told)
    for record in told:
        server.observe(record)
