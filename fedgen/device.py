"""The device's half of a round: unpack, train, send back the change. Every fault becomes an error reply."""

import logging
import time
from collections.abc import Sequence

from fedgen import records, seeds, tree
from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.messages import Reply, Request
from fedgen.parts import Bases, Ground
from fedgen.types import Encoded

_log = logging.getLogger("fedgen")


def answer(ground: Ground, bases: Bases, request: Request, learner: Learner, examples: Sequence[Encoded]) -> Reply:
    """Does what a request asks.

    Args:
        ground: what is known before the first round.
        bases: the model in the types of weights that rungs ask for.
        request: what the server asks.
        learner: over the whole model; used as it is when the client works with all of it.
        examples: the client's.
    """
    experiment, began = ground.experiment, time.perf_counter()
    try:
        if request.base != ground.base.fingerprint:
            raise ClientError("other_base", "the request is about a part of another model than this device has")
        part, own = experiment.wire.decode(request.payload), ground.at(request.rung, bases)
        if own.base is not ground.base or not own.is_plain(request.part, request.round):
            learner = own.learner(request.part, request.round, request.client)
        examples, num_left_out = shortened(examples, request.rung.max_length)
        learner.load(part)
        before = learner.state()
        decoded = time.perf_counter()
        generator = seeds.derive(experiment.seed, "train", request.round, request.client)
        metrics = own.experiment.client.train(learner, examples, request.progress, generator)
        trained = time.perf_counter()
        payload = experiment.wire.encode(tree.subtract(learner.state(), before))
        metrics["seconds_compute"] = trained - decoded
        metrics["seconds_wire"] = decoded - began + time.perf_counter() - trained
        metrics["num_left_out"] = float(num_left_out)
        metrics["peak_memory_bytes"] = float(records.peak_memory_bytes())
        metrics["held_bytes"] = float(sum(p.numel() * p.element_size() for p in learner.module.parameters()))
        return Reply(request.round, request.client, payload, len(examples), metrics)
    except ClientError as error:
        return Reply(request.round, request.client, error=error.reason)
    except Exception:
        # Whatever happens on a device stays there but for one word; the run goes on without this client.
        _log.exception("client %s failed in round %d", request.client, request.round)
        return Reply(request.round, request.client, error="failed")


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
