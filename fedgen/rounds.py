"""The one loop: a round as the paper has it, the server's half and the device's half.

FedAvg: McMahan et al., AISTATS 2017, Algorithm 1. Drivers differ in their ``Transport`` and in nothing else. Replies
are folded as they come and dropped; nothing that a client sends can stop the run.
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedgen import checkpoint, records, seeds, tree
from fedgen.checkpoint import Checkpoint
from fedgen.disk import replace_folder
from fedgen.errors import ClientError, RunError
from fedgen.experiment import Experiment
from fedgen.journal import Journal, read
from fedgen.measure import converse, evaluate
from fedgen.run import Run
from fedgen.stages import Learner, Transport
from fedgen.types import Card, Encoded, Example, Observer, Payload, Plan, Record, Reply, Request, State, Update
from fedgen.workers import Workers

MAX_IDLE_ROUNDS = 3
"""A run stops after so many rounds in a row without a single usable update."""

MAX_EXAMPLES = 2**31
"""No device holds more; sums of weights stay far from overflow."""

_log = logging.getLogger("fedgen")


@dataclass(frozen=True)
class Server:
    """What the loop works with.

    Attributes:
        experiment: what to do.
        run: the folder that keeps everything.
        transport: reaches the devices.
        workers: learners of the server itself, for evaluation and export.
        splits: examples to be measured on.
        facts: base, data and card text; a checkpoint of other facts is not continued.
        observe: is told of each thing as it happens.
    """

    experiment: Experiment
    run: Run
    transport: Transport
    workers: Workers
    splits: Mapping[str, Sequence[Example]]
    facts: Mapping[str, str]
    observe: Observer


def serve(server: Server) -> None:
    """Carries a run through to its end, from its newest valid checkpoint if there is one.

    Raises:
        RunError: the folder cannot be written, its checkpoints are all damaged, or three rounds gave no usable update.
    """
    experiment, folder = server.experiment, server.run.checkpoints
    identity = hashlib.sha256(server.run.experiment_file.read_bytes()).hexdigest()
    initial = server.workers.borrow(experiment.initial_state)
    found, warnings = _newest(server, identity)
    with Journal.open(server.run.metrics_file, after_round=found.round if found else -1) as journal:
        for text in warnings:
            _tell(server, journal, [records.warning(found.round if found else 0, text)])
        begin = found.round + 1 if found else 0
        server.observe(records.start(experiment, str(server.run.path), server.transport.nodes(), begin))
        if found is None:
            found = Checkpoint(0, initial, experiment.aggregation.init(initial), {"idle_rounds": 0, **server.facts})
            journal.write([_round_zero(server, initial)])
            checkpoint.save(folder, found, identity=identity)
        while found.round < experiment.num_rounds:
            found, lines = play(server, found)
            # Journal first: lines beyond the newest checkpoint are dropped on resume, lost lines cannot be made again.
            journal.write(lines)
            checkpoint.save(folder, found, identity=identity)
        _finish(server, journal, initial, found)


def play(server: Server, before: Checkpoint) -> tuple[Checkpoint, list[Record]]:
    """One round: choose, send, fold the replies, apply, measure."""
    experiment, state, round = server.experiment, before.state, before.round + 1
    began = time.perf_counter()
    cohort = experiment.cohort(server.transport.nodes(), round)
    plans = {client: experiment.plan(state, round, client) for client in cohort}
    server.observe({"kind": "dispatch", "round": round, "clients": cohort})
    sent: dict[str, tuple[float, int, float]] = {}
    server.transport.send(_requests(experiment, state, round, plans, sent))
    total = experiment.aggregation.zero(state)
    lines: list[Record] = []
    warnings: list[Record] = []
    for reply in server.transport.receive():
        if reply.client not in sent:
            # Nobody asked this one, or it has answered already: whatever it says is left aside.
            warnings.append(records.warning(round, "a reply came that nobody waits for, and was left aside"))
            continue
        when, bytes_down, seconds_encode = sent.pop(reply.client)
        arrived, refused, seconds_wire = time.perf_counter(), None, 0.0
        try:
            update, seconds_wire = _accept(experiment, reply, round, plans, state)
            experiment.aggregation.add(total, update)
        except ClientError as error:
            refused = error.reason
        lines.append(records.client(reply, refused, arrived - when, bytes_down, seconds_encode + seconds_wire))
        server.observe(lines[-1])
    applied = time.perf_counter()
    state, central = experiment.aggregation.apply(state, before.server, total)
    lines.sort(key=lambda record: str(record["client"]))
    left_out = [line["num_left_out"] for line in lines if line["num_left_out"]]
    if left_out:
        text = f"{sum(left_out)} examples of {len(left_out)} clients are left out: truncation leaves them no answer"
        warnings.append(records.warning(round, f"{text}; raise model.max_length"))
    for warning in warnings:
        server.observe(warning)
    summary = records.round(experiment, round, lines)
    summary["seconds"]["aggregate"] = time.perf_counter() - applied
    last = round == experiment.num_rounds
    if last or round % experiment.evaluate_every == 0:
        _measure(server, state, summary, whole=last)
    summary["seconds"]["total"] = time.perf_counter() - began
    server.observe(summary)
    idle = 0 if summary["num_refused"] < len(lines) else int(before.facts["idle_rounds"]) + 1
    if idle >= MAX_IDLE_ROUNDS:
        reasons = sorted({str(record["refused"]) for record in lines})
        raise RunError(
            f"no client sent a usable update in {idle} rounds in a row ({', '.join(reasons)}). With non_finite_loss, "
            f"lower client.learning_rate; the state of round {before.round} is kept in {server.run.checkpoints}"
        )
    return Checkpoint(round, state, central, {**before.facts, "idle_rounds": idle}), [*lines, *warnings, summary]


def answer(experiment: Experiment, request: Request, learner: Learner, examples: Sequence[Encoded]) -> Reply:
    """The device's half of a round: unpack, train, send back the change. Every fault becomes an error reply."""
    began = time.perf_counter()
    try:
        part = experiment.wire.decode(request.payload)
        learner.load(part)
        decoded = time.perf_counter()
        generator = seeds.derive(experiment.seed, "train", request.round, request.client)
        metrics = experiment.client.train(learner, examples, request.progress, generator)
        trained = time.perf_counter()
        payload = experiment.wire.encode(tree.subtract(learner.state(), part))
        metrics["seconds_compute"] = trained - decoded
        metrics["seconds_wire"] = decoded - began + time.perf_counter() - trained
        metrics["peak_memory_bytes"] = float(records.peak_memory_bytes())
        return Reply(request.round, request.client, payload, len(examples), metrics)
    except ClientError as error:
        return Reply(request.round, request.client, error=error.reason)
    except Exception:
        # Whatever happens on a device stays there but for one word; the run goes on without this client.
        _log.exception("client %s failed in round %d", request.client, request.round)
        return Reply(request.round, request.client, error="failed")


def _requests(
    experiment: Experiment,
    state: State,
    round: int,
    plans: Mapping[str, Plan],
    sent: dict[str, tuple[float, int, float]],
) -> Iterator[Request]:
    """Requests, made when a device is free; notes when each was sent, its bytes and the seconds of packing it."""
    progress = (round - 1) / max(1, experiment.num_rounds - 1)
    packed: tuple[Plan, Payload] | None = None
    for client, plan in plans.items():
        began = time.perf_counter()
        # Most cohorts get one and the same part; it is packed once.
        if packed is None or not tree.is_whole(plan) or packed[0] != plan:
            packed = plan, experiment.wire.encode(tree.cut(state, plan))
        payload = packed[1]
        now = time.perf_counter()
        sent[client] = now, payload.num_bytes, now - began
        yield Request(round, client, progress, plan, payload)


def _accept(
    experiment: Experiment, reply: Reply, round: int, plans: Mapping[str, Plan], state: State
) -> tuple[Update, float]:
    """The update in a reply, and the seconds of unpacking it.

    Raises:
        ClientError: with the reason why this reply does not count.
    """
    if reply.payload is None:
        raise ClientError(reply.error or "failed")
    if reply.round != round:
        raise ClientError("stale")
    began = time.perf_counter()
    try:
        tensors = experiment.wire.decode(reply.payload)
    except ClientError:
        raise
    except Exception as error:
        raise ClientError("malformed") from error
    plan = plans[reply.client]
    if tensors.keys() != plan.keys():
        raise ClientError("names", "a reply must hold the tensors of its plan")
    for name, tensor in tensors.items():
        wanted = [n if kept is None else len(kept) for n, kept in zip(state[name].shape, plan[name], strict=True)]
        if list(tensor.shape) != wanted:
            raise ClientError("shape", f"{name} is {list(tensor.shape)}, not {wanted}")
        if tensor.dtype != state[name].dtype:
            raise ClientError("dtype", f"{name} is {tensor.dtype}, not {state[name].dtype}")
    if type(reply.num_examples) is not int or not 1 <= reply.num_examples <= MAX_EXAMPLES:
        raise ClientError("num_examples", f"{reply.num_examples!r} is not between 1 and {MAX_EXAMPLES}")
    if not all(math.isfinite(value) for value in (tree.largest(tensors), *reply.metrics.values())):
        raise ClientError("non_finite")
    return Update(plan, tensors, reply.num_examples, reply.metrics), time.perf_counter() - began


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
