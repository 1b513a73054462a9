"""The device's half of a round: unpack, choose examples, train, send back the change.

Every fault becomes an error reply. What a client finds out about its examples it keeps in its ``Holding``.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fedgen import records, seeds
from fedgen.devices import Rung
from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.messages import Reply, Request
from fedgen.parts import Ground
from fedgen.types import Encoded, Example

_log = logging.getLogger("fedgen")


@dataclass(frozen=True)
class Holding:
    """What a client has, from its first round to its last. It never leaves the client.

    Attributes:
        examples: those that truncation leaves an answer.
        labels: their classes, in the same order; empty where an example has none.
        num_left_out: examples without a token of an answer.
        scores: type of the weights and example → its score; filled when it is first asked for.
    """

    examples: Sequence[Encoded]
    labels: Sequence[str]
    num_left_out: int = 0
    scores: dict[tuple[str | None, Encoded], float] = field(default_factory=dict)


def hold(learner: Learner, examples: Sequence[Example]) -> Holding:
    """A client's examples as it works with them."""
    pairs = list(zip(learner.encode(examples), examples, strict=True))
    encoded = [ids for ids, _ in pairs if ids is not None]
    return Holding(encoded, [e.label for ids, e in pairs if ids is not None], len(pairs) - len(encoded))


def select(ground: Ground, holding: Holding, rung: Rung) -> tuple[list[Encoded], int]:
    """The examples to train on, and how many of them have no score that is a number, and so are left out.

    Scores are of the whole model as it was loaded. So they hold for the whole run, and a run that is continued, which
    knows no state but its last, finds the same ones. Equal examples are scored once.
    """
    selection, examples, known = ground.experiment.selection, holding.examples, holding.scores
    if not selection.needs_scores:
        positions, num_unscored = selection.keep([0.0] * len(examples), holding.labels), 0
    else:
        # In few bits the model gives other numbers.
        if new := [example for example in dict.fromkeys(examples) if (rung.dtype, example) not in known]:
            learner = ground.base.learner(ground.base.replica(private=False), {})
            known.update(((rung.dtype, example), selection.measure(learner, example)) for example in new)
        scores = [known[rung.dtype, example] for example in examples]
        positions = selection.keep(scores, holding.labels)
        num_unscored = sum(not math.isfinite(score) for score in scores)
    if examples and not positions:
        raise ClientError("no_finite_scores")
    return [examples[position] for position in positions], num_unscored


def answer(ground: Ground, request: Request, learner: Learner, holding: Holding) -> Reply:
    """Does what a request asks.

    Args:
        ground: what is known before the first round.
        request: what the server asks.
        learner: over the whole model; used as it is when the client works with all of it.
        holding: the client's.
    """
    experiment, began = ground.experiment, time.perf_counter()
    try:
        if holding.num_left_out and not holding.examples:
            raise ClientError("no_answer_tokens")
        if request.base != ground.base.fingerprint:
            raise ClientError("other_base", "the request is about a part of another model than this device has")
        part, own = experiment.wire.decode(request.payload), ground.at(request.rung)
        if own.base is not ground.base or not own.is_plain(request.part, request.round):
            learner = own.learner(request.part, request.round, request.client)
        learner.load(part)
        del part
        decoded = time.perf_counter()
        if request.num_measured:
            return measure(own, request, learner, holding)
        examples, num_unscored = select(own, holding, request.rung)
        examples, num_too_long = shortened(examples, request.rung.max_length)
        selected = time.perf_counter()
        generator = seeds.derive(experiment.seed, "train", request.round, request.client)
        held = [encoded for encoded in examples if learner.holds(encoded)]
        if examples and not held:
            raise ClientError("tokens_not_held", "every example has a token that the part does not hold")
        done = own.experiment.client.train(learner, held, request.progress, generator)
        trained = time.perf_counter()
        units = own.own_units(request.part, held)
        confined = own.confined(request.part, units, request.round)
        payload, metrics = experiment.wire.encode(done.change, confined, done.walk), dict(done.metrics)
        # Choosing is work of the device like any other; what it takes is told besides.
        metrics["seconds_compute"] = trained - decoded
        metrics["seconds_select"] = selected - decoded
        metrics["seconds_wire"] = decoded - began + time.perf_counter() - trained
        metrics["peak_memory_bytes"] = float(records.peak_memory_bytes())
        metrics["held_bytes"] = float(sum(p.nbytes for p in learner.module.parameters()))
        metrics["num_left_out"] = float(holding.num_left_out + num_too_long)
        metrics["num_unscored"] = float(num_unscored)
        metrics["num_selected"] = float(len(examples))
        metrics["num_not_held"] = float(len(examples) - len(held))
        return Reply(request.round, request.client, payload, len(held), metrics, kept=units)
    except ClientError as error:
        return Reply(request.round, request.client, error=error.reason)
    except Exception:
        # Whatever happens on a device stays there but for one word; the run goes on without this client.
        _log.exception("client %s failed in round %d", request.client, request.round)
        return Reply(request.round, request.client, error="failed")


def measure(ground: Ground, request: Request, learner: Learner, holding: Holding) -> Reply:
    """The loss, on some of a client's examples, of what it was sent; nothing is trained.

    Args:
        ground: what is known before the first round, as the client works.
        request: says on how many examples.
        learner: holds what was sent.
        holding: the client's.

    Raises:
        ClientError: it has no example that the part can say.
    """
    began = time.perf_counter()
    generator = seeds.derive(ground.experiment.seed, "measure", request.round, request.client)
    order = torch.randperm(len(holding.examples), generator=generator).tolist()
    examples, _ = shortened([holding.examples[position] for position in order], request.rung.max_length)
    held = [encoded for encoded in examples if learner.holds(encoded)][: request.num_measured]
    if not held:
        raise ClientError("no_examples")
    # As many at once as a step takes: it is known that they fit.
    size = ground.experiment.client.num_at_once
    batches = [held[start : start + size] for start in range(0, len(held), size)]
    scores = [score for batch in batches for score in learner.score(batch)]
    metrics = {
        "loss": sum(score.nll for score in scores) / sum(score.num_tokens for score in scores),
        "num_tokens": float(sum(score.num_tokens for score in scores)),
        "seconds_compute": time.perf_counter() - began,
        "peak_memory_bytes": float(records.peak_memory_bytes()),
    }
    return Reply(request.round, request.client, None, len(held), metrics)


def shortened(examples: Sequence[Encoded], max_length: int | None) -> tuple[list[Encoded], int]:
    """Examples cut off at a length, and how many are left out, since their prompt alone is longer.

    Args:
        examples: token ids.
        max_length: in tokens; None leaves them as they are.
    """
    if max_length is None or all(len(encoded.ids) <= max_length for encoded in examples):
        return list(examples), 0
    usable = [encoded for encoded in examples if encoded.num_prompt < max_length]
    cut = [Encoded(encoded.ids[:max_length], encoded.num_prompt) for encoded in usable]
    return cut, len(examples) - len(cut)
