"""Each owner is a client: the split that the data themselves have, and the only one without any chance in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen.errors import DataError
from fedgen.types import Example


@dataclass(frozen=True)
class ByOwner:
    """Each owner is a client, and holds what it owns."""

    def split(self, examples: Sequence[Example], generator: torch.Generator) -> dict[str, list[int]]:
        """Owner → positions of its examples, ascending; the generator is not drawn on.

        Raises:
            DataError: there are no examples, or some have no owner.
        """
        if not examples:
            raise DataError("there are no examples to divide among clients")
        clients: dict[str, list[int]] = {}
        for position, example in enumerate(examples):
            clients.setdefault(example.owner, []).append(position)
        if "" in clients:
            raise DataError(
                f"{len(clients[''])} of {len(examples)} examples have no owner (the first is number "
                f"{clients[''][0] + 1}); name their owners, or use partition=iid or partition=dirichlet"
            )
        return dict(sorted(clients.items()))
