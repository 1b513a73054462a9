"""The process of one device, as ``memory`` measures it: imports what training needs, loads, trains, says what it had.

It is a program of its own. It reads a job as JSON from its standard input and writes one JSON object as its last line.
Nothing is imported that a device does not need; the configuration comes as plain values, composed elsewhere.
"""

import contextlib
import json
import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgen.experiment import Experiment
    from fedgen.learner import Base, Learner
    from fedgen.types import Encoded, Plan, State, Trained

MB = 1024
"""The kernel counts in kB of 1024 bytes; 1024 of those are a MB here."""

MODULES = (
    "fedgen.adapter.factor",
    "fedgen.device",
    "fedgen.model.causal_lm",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "peft.utils.transformers_weight_conversion",
)
"""What is imported within functions, when it is used: the model's class, what finds it, and the adapter."""


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        config: a resolved experiment as plain values.
        sequence: tokens per example.
        num_answer: how many of them are answer; None for all but the first.
        num_steps: optimiser steps that are timed.
        cap_mb: how much memory there is; None for all that the machine has.
        tight: freed memory goes back at once, for a process that has to do with little.
        width: share of the units of every cut axis that the device gets.
    """

    config: dict[str, object]
    sequence: int
    num_answer: int | None
    num_steps: int
    cap_mb: int | None
    tight: bool = False
    width: float = 1.0


def carry_out(job: Job) -> dict[str, Any]:
    """Loads and trains.

    Returns:
        MB resident after the imports, after loading, at most until then, and at most of all; median and least seconds
        of a step; losses of the first and of the last step; number of trained parameters; modules that came after the
        imports.
    """
    from fedgen import lean

    experiment = import_and_build(job.config)
    imported, import_mb = set(sys.modules), resident("VmRSS")
    forget_peak()
    lean.free_early(tight=job.tight)
    if job.cap_mb is not None:
        cap(job.cap_mb)
    base, learner = open_as_device(experiment, whole=job.width == 1)
    lean.give_back()
    if job.width < 1:
        learner, state = part_of(experiment, base, learner, job.width)
    else:
        state = experiment.initial_state(learner)
    # A device has what it was sent for as long as its turn takes.
    received = experiment.wire.encode(state)
    del state
    learner.load(experiment.wire.decode(received))
    loaded_mb, loading_mb = resident("VmRSS"), resident("VmHWM")
    examples = draw_examples(learner, job, experiment)
    losses, seconds = [], []
    for _ in range(job.num_steps):
        began = time.perf_counter()
        losses.append(train(experiment, learner, examples, 1))
        seconds.append(time.perf_counter() - began)
    # An optimiser's own state is made at the end of its first step, so the second one needs the most.
    reply(experiment, learner, examples)
    return {
        "import_mb": import_mb,
        "loaded_mb": loaded_mb,
        "loading_mb": loading_mb,
        "peak_mb": resident("VmHWM"),
        "step_s": sorted(seconds)[len(seconds) // 2],
        "fastest_s": min(seconds),
        "num_trained": sum(parameter.numel() for parameter in learner.parameters().values()),
        "loss_start": losses[0],
        "loss_end": losses[-1],
        "late_modules": sorted(set(sys.modules) - imported),
    }


def import_and_build(config: dict[str, object]) -> "Experiment":
    """The experiment, which costs its imports alone, after all other modules that loading and training use."""
    import importlib

    from fedgen import lean

    lean.slim_down()
    for name in MODULES:
        importlib.import_module(name)
    import torch

    from fedgen.config.check import build

    torch.set_num_threads(1)
    return build(config)


def open_as_device(experiment: "Experiment", *, whole: bool) -> "tuple[Base, Learner]":
    """The model as a device opens it: of a part it reads no more than that."""
    from fedgen.bases import opened

    return opened(experiment, None, whole=whole or experiment.extraction_mode == "window")


def part_of(experiment: "Experiment", base: "Base", learner: "Learner", width: float) -> "tuple[Learner, State]":
    """A learner over a part, made as a device makes it in its turn, and the state that it would be sent."""
    from fedgen.parts import ground_of

    ground = ground_of(experiment, base, learner, ("device",), None)
    part = ground.part("device", 1, width)
    return ground.learner(part, 1, "device"), _zeros(learner, ground.sent(part))


def _zeros(learner: "Learner", plan: "Plan") -> "State":
    """A state of the shapes that a device is sent; it has no weights of its own from which to make one."""
    import torch

    from fedgen import tree

    named = learner.parameters()
    return {name: torch.zeros(tree.extent(named[name], kept)) for name, kept in plan.items()}


def draw_examples(learner: "Learner", job: Job, experiment: "Experiment") -> "list[Encoded]":
    """A batch of examples of exactly as many tokens as were asked for, drawn from all tokens that a part may hold."""
    import torch

    from fedgen.types import Encoded

    num_examples, num_tokens = experiment.client.batch_size, len(learner.tokenizer)
    if "vocab" in experiment.extraction.axes:
        # Of the first ones a static part holds all.
        num_tokens = int(job.width * num_tokens) // 2
    ids = torch.randint(num_tokens, (num_examples, job.sequence), generator=torch.Generator().manual_seed(0))
    num_answer = job.sequence - 1 if job.num_answer is None else job.num_answer
    return [Encoded(tuple(row), job.sequence - num_answer) for row in ids.tolist()]


def train(experiment: "Experiment", learner: "Learner", examples: "list[Encoded]", num_steps: int) -> float:
    """The mean loss of some steps."""
    return float(_trained(experiment, learner, examples, num_steps).metrics["loss"])


def reply(experiment: "Experiment", learner: "Learner", examples: "list[Encoded]") -> None:
    """Two steps, and what comes of them packed as it is sent."""
    done = _trained(experiment, learner, examples, 2)
    experiment.wire.encode(done.change, walk=done.walk)


def _trained(experiment: "Experiment", learner: "Learner", examples: "list[Encoded]", num_steps: int) -> "Trained":
    from fedgen import seeds

    client: Any = replace(experiment.client, num_steps=num_steps)
    done: Trained = client.train(learner, examples, 0.0, seeds.derive(0, "train"))
    return done


def resident(field: str) -> float:
    """MB that /proc/self/status tells: VmRSS now, VmHWM at most. What getrusage tells may be the parent's maximum."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / MB


def forget_peak() -> None:
    """Makes VmHWM count from now on, where the kernel permits it; elsewhere it goes on counting from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cap(cap_mb: int) -> None:
    """Lets private memory grow by what is left below the cap, and no further.

    The limit on data is the one that fits: a limit on address space counts the libraries and what is reserved and never
    touched as well, and one on resident memory is not kept by the kernel. It counts threads' stacks and weights mapped
    privately whether they were touched or not, so it is a little stricter than a machine with that much memory.
    """
    left = max(0, int((cap_mb - resident("VmRSS")) * MB))
    limit = (int(resident("VmData") * MB) + left) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    print(json.dumps(carry_out(Job(**json.load(sys.stdin)))))
