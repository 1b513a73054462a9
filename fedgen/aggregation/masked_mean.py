"""Mean over those who held an entry: the aggregation for clients that get parts of the model.

HeteroFL (Diao et al., ICLR 2021), FjORD (Horvath et al., NeurIPS 2021) and FedRolex (Alam et al., NeurIPS 2022) all
average each entry over the clients whose part held it and leave alone what nobody held; they differ in which parts
there are, and FjORD alone weighs clients by their examples. Here changes are averaged in place of weights, so that an
entry that nobody changes keeps its bits.

Server momentum as in Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, section 4.3, on the entries that were held: the others keep their momentum too.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from fedgen.aggregation.held_sum import HeldSum, advance, magnitude
from fedgen.types import State, Update


@dataclass(frozen=True)
class MaskedMean:
    """Mean of the changes, entry by entry over the clients that held it.

    With m the weight of an entry's holders and M that of all clients, the mean over the holders is scaled by
    (m / M)**(1 - coverage_power). The memory is one fp32 copy of the state, which becomes the next state.

    Attributes:
        weighting: each client counts by its number of examples, or all count alike.
        coverage_power: 1: mean over the holders, however few; 0: who did not hold an entry counts as no change.
        learning_rate: server step size; 1 adds the mean as it is.
        momentum: server momentum; 0 keeps no state on the server.
    """

    weighting: Literal["num_examples", "uniform"] = "num_examples"
    coverage_power: float = 1.0
    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not 0 <= self.coverage_power <= 1:
            raise ValueError(
                f"coverage_power is {self.coverage_power}; it must be from 0 (mean over all clients) to 1 (mean over "
                "those that held the entry)"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive (1 adds the mean as it is)")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")

    def init(self, state: State) -> State:
        """The momentum buffer in fp32; empty without momentum."""
        return {name: torch.zeros(t.shape) for name, t in state.items()} if self.momentum else {}

    def zero(self, state: State) -> HeldSum:
        """An empty total."""
        return HeldSum({name: t.shape for name, t in state.items()})

    def add(self, total: HeldSum, update: Update) -> None:
        """Folds one update into the total, in place, tensor by tensor.

        Sums are of fp32, so that their last bits depend on the order of the updates.

        Raises:
            ClientError: the update does not fit its plan, is not finite, or the sum could overflow (`too_large`); the
                total is unchanged then.
        """
        weight = (update.num_examples if self.weighting == "num_examples" else 1) * update.discount
        total.admit(weight, magnitude(update, total.shapes))
        total.fold(update.plan, update.tensors, weight)

    def apply(self, state: State, server: State, total: HeldSum) -> tuple[State, State]:
        """The next state, in the memory of the total, which is used up.

        Entries that nobody held keep their bits, and so does their momentum.
        """
        after, buffers = dict(state), dict(server)
        for name, before in state.items():
            taken = total.take(name, self.coverage_power)
            if taken is None:
                continue
            change, held = taken
            if self.momentum:
                buffer = torch.add(change, server[name], alpha=self.momentum)
                buffers[name] = torch.where(held, buffer, server[name], out=buffer)
                change.copy_(buffer)
            after[name] = advance(before, change.mul_(self.learning_rate), held)
        return after, buffers
