"""Each owner is a client: the split that the data themselves have, and the only one without any chance in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen.errors import DataError
from fedgen.types import Example


@dataclass(frozen=True)
class ByOwner:
    """Each owner is a client, and holds what it owns.

    Attributes:
        owners: who takes part; null lets everybody. With a single one this is the local-only baseline.
    """

    owners: tuple[str, ...] | None = None

    def split(self, examples: Sequence[Example], generator: torch.Generator) -> dict[str, list[int]]:
        """Owner → positions of its examples, ascending; the generator is not drawn on.

        Raises:
            DataError: there are no examples, some have no owner, or an owner who is to take part has none.
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
        wanted = sorted(clients) if self.owners is None else sorted(set(self.owners))
        unknown = [owner for owner in wanted if owner not in clients]
        if unknown or not wanted:
            raise DataError(f"partition.owners is {list(self.owners or ())}; the data has {', '.join(sorted(clients))}")
        return {owner: clients[owner] for owner in wanted}
