"""The device's half of a round: unpack, train, send back the change. Every fault becomes an error reply."""

import logging
import time
from collections.abc import Sequence

from fedgen import records, seeds
from fedgen.errors import ClientError
from fedgen.learner import Learner
from fedgen.messages import Reply, Request
from fedgen.parts import Ground
from fedgen.types import Encoded

_log = logging.getLogger("fedgen")


def answer(ground: Ground, request: Request, learner: Learner, examples: Sequence[Encoded]) -> Reply:
    """Does what a request asks.

    Args:
        ground: what is known before the first round.
        request: what the server asks.
        learner: over the whole model; used as it is when the client works with all of it.
        examples: the client's.
    """
    experiment, began = ground.experiment, time.perf_counter()
    try:
        if request.base != ground.base.fingerprint:
            raise ClientError("other_base", "the request is about a part of another model than this device has")
        part = experiment.wire.decode(request.payload)
        if not ground.is_plain(request.part, request.round):
            learner = ground.learner(request.part, request.round, request.client)
        learner.load(part)
        del part
        before = learner.state()
        decoded = time.perf_counter()
        generator = seeds.derive(experiment.seed, "train", request.round, request.client)
        metrics = experiment.client.train(learner, examples, request.progress, generator)
        trained = time.perf_counter()
        # One tensor after the other: where all weights are trained, each copy of them is as large as the model.
        change = {name: parameter.detach() - before.pop(name) for name, parameter in learner.parameters().items()}
        payload = experiment.wire.encode(change)
        metrics["seconds_compute"] = trained - decoded
        metrics["seconds_wire"] = decoded - began + time.perf_counter() - trained
        metrics["peak_memory_bytes"] = float(records.peak_memory_bytes())
        metrics["held_bytes"] = float(sum(p.numel() * p.element_size() for p in learner.module.parameters()))
        return Reply(request.round, request.client, payload, len(examples), metrics)
    except ClientError as error:
        return Reply(request.round, request.client, error=error.reason)
    except Exception:
        # Whatever happens on a device stays there but for one word; the run goes on without this client.
        _log.exception("client %s failed in round %d", request.client, request.round)
        return Reply(request.round, request.client, error="failed")
