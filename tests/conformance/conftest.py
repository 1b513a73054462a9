"""A small model and a few examples to run options on."""

from collections.abc import Callable

import pytest

from fedgen import seeds
from fedgen.adapter.lora import Lora
from fedgen.learner import Base, Learner
from fedgen.model.tiny import Tiny
from fedgen.stages import Adapter
from fedgen.types import Encoded, Example

WORDS = ("lamp", "fan", "heater", "blind", "radio", "pump", "valve", "oven")


@pytest.fixture(scope="session")
def base() -> Base:
    return Tiny(hidden_size=32).load(0)


@pytest.fixture
def make_learner(base: Base) -> Callable[..., Learner]:
    """Makes learners over the one small model, in the state with which a federation starts, fixed tensors included."""

    def make(adapter: Adapter | None = None) -> Learner:
        adapter = adapter or Lora(rank=4)
        module = adapter.attach(base.replica(private=adapter.trains_base))
        learner = base.learner(module, adapter.parameters(module))
        learner.load(adapter.initial(module, seeds.derive(0, "initial")))
        return learner

    return make


@pytest.fixture
def examples() -> list[Example]:
    """Sixteen short questions and answers; no two alike."""
    return [
        Example(f"{word} {number}: ", f"{word[0].upper()}{number}", f"owner-{number}", word)
        for number in range(2)
        for word in WORDS
    ]


@pytest.fixture
def encoded(make_learner: Callable[..., Learner], examples: list[Example]) -> list[Encoded]:
    return [ids for ids in make_learner().encode(examples) if ids is not None]
