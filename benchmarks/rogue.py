"""``fedgen`` on a device that somebody else has taken over: it takes part as others do, and answers what it is told to.

``python rogue.py client BUNDLE`` works as ``fedgen client BUNDLE`` does, with a worker of its own. What to do in which
round it looks up in `orders.json` beside the bundle's `join.json`: ``{"3": "nan"}`` sends NaN in round 3. The key
"always" holds for what is not about a round: `version` and `base`, for another fedgen and another model.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgen.messages import Reply
    from fedgen.types import State

SECRET = "the owner's diary lies in the attic"
"""A text that an error on the device holds, and that must not leave it."""

FORGERIES = (
    "nan", "replay", "inf", "foreign", "shape", "broadcast", "dtype", "extra", "missing", "examples", "negative",
    "oversized",
)  # fmt: skip
"""Orders that `forge` carries out; besides, a round can be ordered to `raise` or to `hog` memory."""


def main(arguments: Sequence[str]) -> int:
    """A client with another worker, or that worker."""
    if arguments[0] == "worker":
        return work(arguments[1:])
    from fedgen.cli.main import main as fedgen
    from fedgen.deployment import client

    genuine = client._Desk.worker

    def worker(self: Any) -> Any:  # noqa: ANN401 - whatever is taken over
        child = genuine(self)
        command = [sys.executable, __file__, "worker", *list(child.command())[3:]]
        return dataclasses.replace(child, command=lambda: command)

    client._Desk.worker = worker  # type: ignore[method-assign]
    return fedgen(list(arguments))


def work(arguments: Sequence[str]) -> int:
    """The worker: fedgen's own, but for what it answers."""
    from fedgen import lean

    lean.slim_down()
    # It can be done once, and the worker is about to do it.
    lean.slim_down = lambda: None
    from fedgen.federation import desk, worker

    orders = Path(arguments[0]).parents[1] / "orders.json"
    genuine, condition, before = desk.answer, desk.condition, {"reply": None}

    def answer(*given: Any) -> "Reply":  # noqa: ANN401
        reply = genuine(*given)
        order = _orders(orders).get(str(reply.round), "")
        if order == "raise":
            raise RuntimeError(SECRET)
        if order == "hog":
            _hog()
        forged = forge(reply, before["reply"], order) if order else reply
        before["reply"] = reply
        return forged

    def report(*given: Any) -> dict[str, Any]:  # noqa: ANN401
        always = _orders(orders).get("always", "")
        return {**condition(*given), **({"fedgen": "99.0.0"} if always == "version" else {})}

    desk.answer, desk.condition = answer, report
    if _orders(orders).get("always") == "base":
        _take_other_model()
    worker.main(list(arguments))
    return 0


def forge(reply: "Reply", before: "Reply | None", order: str) -> "Reply":
    """A reply with something wrong about it.

    Args:
        reply: the honest one.
        before: that of the round before.
        order: one of `FORGERIES`.
    """
    import torch

    from fedgen.messages import Payload
    from fedgen.wire.dense import Dense

    if order == "replay":
        assert before is not None
        return before
    plain = {"foreign": {"client": "owner-0"}, "examples": {"num_examples": 10**12}, "negative": {"num_examples": -5}}
    if order in plain:
        return dataclasses.replace(reply, **plain[order])
    assert reply.payload is not None
    if order == "oversized":
        return dataclasses.replace(reply, payload=Payload(reply.payload.manifest, reply.payload.data.repeat(10)))
    changes: dict[str, Callable[[State, str], object]] = {
        "nan": lambda state, name: state[name].view(-1)[:1].fill_(torch.nan),
        "inf": lambda state, name: state[name].view(-1)[:1].fill_(torch.inf),
        "shape": lambda state, name: state.update({name: state[name].t()}),
        "broadcast": lambda state, name: state.update({name: state[name][:1]}),
        "dtype": lambda state, name: state.update({name: state[name].half()}),
        "extra": lambda state, name: state.update(extra=state[name]),
        "missing": lambda state, name: state.pop(name),
    }
    state = {name: tensor.clone() for name, tensor in Dense().decode(reply.payload).items()}
    # Of two unlike dimensions, so that the other way round it has another shape.
    name = next(name for name, tensor in state.items() if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1])
    changes[order](state, name)
    return dataclasses.replace(reply, payload=Dense().encode(state))


def _hog() -> None:
    """Takes memory until there is none."""
    taken = []
    while True:
        taken.append(os.urandom(2**24))


def _take_other_model() -> None:
    """The model of this device is another than that of the others."""
    from fedgen.model.tiny import Tiny

    genuine = Tiny.load

    def load(self: Tiny, seed: int, *given: Any, **more: Any) -> Any:  # noqa: ANN401
        return genuine(self, seed + 1, *given, **more)

    Tiny.load = load  # type: ignore[method-assign]


def _orders(file: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
