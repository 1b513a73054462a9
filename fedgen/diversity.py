"""How much the clients of a round pull in different directions.

Gradient diversity: Yin et al., "Gradient Diversity: a Key Ingredient for Scalable Distributed Learning", AISTATS 2018,
definition 1: the sum of the squared norms over the squared norm of the sum. It is 1/n where n clients send one and the
same change, and 1 where their changes are at right angles. GPT-FL (Zhang et al., 2023, arXiv 2306.02210) says that a
seed lowers it in the first rounds.
"""

from fedgen import tree
from fedgen.types import State, Update


class Diversity:
    """Of the changes of one round, which are added one by one. Holds one state; changes are in memory nowhere else.

    Args:
        state: what the changes are to.
    """

    def __init__(self, state: State) -> None:
        self._sum = tree.zeros(state)
        self._squares = 0.0
        self._num = 0

    def add(self, update: Update) -> None:
        """Takes a client's change; where it holds nothing it changes nothing."""
        tree.paste(update.plan, update.tensors, self._sum)
        self._squares += _square(update.tensors)
        self._num += 1

    def value(self) -> float | None:
        """Between 1/n and infinity; None if there are less than two changes, or they cancel each other to nothing."""
        square = _square(self._sum)
        return self._squares / square if self._num > 1 and square > 0 else None


def _square(state: State) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in state.values())
