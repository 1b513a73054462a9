"""What parts of a model cost and what they save, at the size of SmolLM2-135M.

Cutting and pasting are told as times over copying as many bytes in the same run; the server's memory while it folds
updates as a share of one fp32 accumulator, one update and the largest tensor; the training step of a model with half of
its feed-forward width as time over that of the whole, and the bytes of the weights, gradients and optimiser state that
it lacks over the peak memory that it saves. What needs a clean peak runs in a process of its own.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgen.types import Axes, Kept, Plan, State

WINDOW_BOUND, RANDOM_BOUND = 2.0, 5.0
"""Times over memcpy: half, and a fifth, of its speed."""

STEP_BOUND = 0.8
NUM_CLIENTS = 50
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SHAPE |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}


def main(as_json: bool) -> int:
    """Prints the figures; 1 if one is above its bound."""
    from fedgen.cli.figures import report

    figures: dict[str, dict[str, float]] = {}
    for name, value in copies().items():
        bound = RANDOM_BOUND if "random" in name else WINDOW_BOUND
        figures[f"{name}, time over memcpy"] = {"value": round(value, 2), "bound": bound}
    few, many = (alone("aggregation", str(number)) for number in (5, NUM_CLIENTS))
    figures[f"server's peak, {NUM_CLIENTS} half-width updates"] = {"value": round(many["share"], 3), "bound": 1.0}
    figures["the same over that of 5 updates"] = {"value": round(many["peak"] / few["peak"], 3), "bound": 1.02}
    rounds = [(alone("step", "whole"), alone("step", "half")) for _ in range(2)]
    whole, half = (min(turn[which]["seconds"] for turn in rounds) for which in (0, 1))
    saved = min(turn[0]["peak"] for turn in rounds) - max(turn[1]["peak"] for turn in rounds)
    removed = rounds[0][0]["trained"] - rounds[0][1]["trained"]
    figures["step with half the feed-forward width, time"] = {"value": round(half / whole, 3), "bound": STEP_BOUND}
    # Of every weight that is gone: itself, its gradient, and Adam's two moments.
    figures["what it lacks over what it saves"] = {"value": round(4 * removed / saved, 3), "bound": 1.0}
    return report("Parts of SmolLM2-135M", figures, as_json)


def alone(what: str, argument: str) -> dict[str, float]:
    """The measurement of a function of this file, made in a process of its own."""
    command = [sys.executable, __file__, what, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def copies() -> dict[str, float]:
    """Seconds of cutting and pasting half-width plans over seconds of copying as many bytes."""
    import torch

    from fedgen import tree

    torch.set_num_threads(1)
    axes, state = model()
    told = {}
    for name, kept in (("windows", windows(axes, 7)), ("windows that wrap", windows(axes, 9)), ("random", drawn(axes))):
        plan = {n: kept for n, kept in tree.plan_of(axes, kept).items() if any(index is not None for index in kept)}
        part = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tree.cut(state, plan).items()}
        source = torch.rand(tree.num_bytes(part) // 4)
        target, into = torch.empty_like(source), tree.zeros({n: state[n] for n in plan})
        memcpy, cut, paste = best(
            lambda target=target, source=source: target.copy_(source),
            # As the wire does it: straight into the payload.
            lambda plan=plan, part=part: tree.cut(state, plan, part),
            lambda plan=plan, part=part, into=into: tree.paste(plan, part, into),
        )
        told |= {f"cut, {name}": cut / memcpy, f"paste, {name}": paste / memcpy}
    return told


def best(*functions: Callable[[], object]) -> list[float]:
    """Least seconds of each, taken in turn."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(9):
        for taken, function in zip(seconds, functions, strict=True):
            began = time.perf_counter()
            function()
            taken.append(time.perf_counter() - began)
    return [min(taken) for taken in seconds]


def model() -> "tuple[Axes, State]":
    """Axes and random fp32 weights of a model of that shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fedgen.model.axes import axes_of
    from fedgen.model.part import skeleton

    module = skeleton(lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)))
    return axes_of(module), {name: torch.rand(p.shape) for name, p in module.named_parameters()}


def windows(axes: "Axes", number: int) -> "Kept":
    """Half of every inner axis: a window that begins at tenths of it."""
    from fedgen.extraction.rolling import Rolling
    from fedgen.parts import units_of
    from fedgen.types import Choice

    return {
        axis: Rolling(stride=max(1, units // 12)).keep(Choice(axis, units, units_of(0.5, units), number, ""))
        for axis, units in axes.units.items()
        if axis.startswith(("ffn.", "kv."))
    }


def drawn(axes: "Axes") -> "Kept":
    """Half of every inner axis, at random."""
    from fedgen.extraction.random import Random
    from fedgen.parts import units_of
    from fedgen.types import Choice

    return {
        axis: Random().keep(Choice(axis, units, units_of(0.5, units), 1, "client"))
        for axis, units in axes.units.items()
        if axis.startswith(("ffn.", "kv."))
    }


def aggregation(num_clients: str) -> dict[str, float]:
    """Peak memory of folding updates above what rests, and its share of what may be there."""
    import torch

    from fedgen import tree
    from fedgen.aggregation.masked_mean import MaskedMean
    from fedgen.types import Update

    torch.set_num_threads(1)
    axes, state = model()
    rule = MaskedMean()
    plans: list[Plan] = [tree.plan_of(axes, windows(axes, number)) for number in range(1, int(num_clients) + 1)]
    resting = resident()
    change = {name: torch.full(tree.extent(state[name], kept), 1e-3) for name, kept in plans[0].items()}
    allowed = tree.num_bytes(state) + tree.num_bytes(change) + 4 * max(t.numel() for t in state.values())
    total = rule.zero(state)
    for number, plan in enumerate(plans):
        # The size of an update does not change from client to client, and no more than one is ever there.
        rule.add(total, Update(plan, change, number + 1))
    del change
    rule.apply(state, rule.init(state), total)
    return {"peak": peak() - resting, "share": (peak() - resting) / allowed}


def step(which: str) -> dict[str, float]:
    """Least seconds of a training step on all weights, 8 sequences of 64 tokens, and the peak memory."""
    import torch

    from fedgen.adapter.full import Full
    from fedgen.model.causal_lm import CausalLM
    from fedgen.types import Encoded

    torch.set_num_threads(1)
    axes = {f"ffn.{layer}": torch.arange(SHAPE["intermediate_size"] // 2) for layer in range(30)}
    base = CausalLM(dtype="float32").load(0, axes if which == "half" else None)
    adapter = Full()
    module = adapter.attach(base.module)
    learner = base.learner(module, adapter.parameters(module))
    batch = [Encoded(tuple((7 * n + 3 * k) % 40_000 for k in range(64)), 32) for n in range(8)]
    optimizer = torch.optim.AdamW(learner.parameters().values(), lr=1e-5, fused=True)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        optimizer.zero_grad()
        learner.loss(batch).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    trained = sum(4 * parameter.numel() for parameter in learner.parameters().values())
    return {"seconds": min(seconds), "peak": peak(), "trained": trained}


def resident() -> int:
    """Bytes that this process has in memory now."""
    return status("VmRSS")


def peak() -> int:
    """The most bytes that this process ever had in memory; getrusage's counts what its parent had as well."""
    return status("VmHWM")


def status(field: str) -> int:
    """A number of bytes in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    functions: dict[str, Callable[[str], dict[str, Any]]] = {"aggregation": aggregation, "step": step}
    print(json.dumps(functions[sys.argv[1]](sys.argv[2])))
