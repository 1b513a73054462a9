"""What the stage `generator` must do; ``stages`` has the other Protocols."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from fedgen.task import Draft, Order, Task


@runtime_checkable
class Generator(Protocol):
    """Where synthetic examples come from.

    It knows a task's public description and nobody's data. What it writes is untrusted: filters judge it.
    """

    @property
    def kind(self) -> str:
        """The kind of task that it writes for: `commands` or `sensor`."""

    @property
    def licence(self) -> str:
        """Under which terms it may be used to write examples."""

    def plan(self, task: Task, num_examples: int, seed: int) -> tuple[Order, ...]:
        """What to ask for: so many drafts in all, as many of one label as of another, in every form and tone.

        Raises:
            ConfigError: the task is of another kind.
        """

    def generate(self, task: Task, orders: Iterable[Order], seed: int) -> Iterator[Draft]:
        """The drafts of each order, in order. An order's drafts depend on it and the seed, not on the other orders.

        So a plan that was interrupted is continued with the orders that are left, and nothing changes.
        """

    def vary(self, task: Task, drafts: Iterable[Draft], degree: float, seed: int) -> Iterator[Draft]:
        """Each draft said in another way, with the same answer.

        Args:
            task: theirs.
            drafts: well-formed ones.
            degree: how much is changed, from 0, nothing, to 1.
            seed: of the draws.
        """

    def fingerprint(self) -> str:
        """Names everything on which its drafts depend besides task, orders and seed: model, versions, settings."""
