"""Examples dealt out at random, evenly: what federated learning would be like if all clients were alike.

The IID setting of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
2017, section 3. Owners are disregarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedgen.errors import DataError
from fedgen.partition.names import client_names
from fedgen.types import Example


@dataclass(frozen=True)
class Iid:
    """Examples dealt out at random, evenly.

    Attributes:
        num_clients: how many clients there are.
    """

    num_clients: int = 4

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.num_clients < 1:
            raise ValueError(f"num_clients is {self.num_clients}; it must be at least 1")

    def split(self, examples: Sequence[Example], generator: torch.Generator) -> dict[str, list[int]]:
        """Client → positions of its examples, ascending; numbers of examples differ by one at most.

        Raises:
            DataError: there are fewer examples than clients.
        """
        if len(examples) < self.num_clients:
            raise DataError(
                f"{len(examples)} examples cannot go to {self.num_clients} clients; lower num_clients or add examples"
            )
        order = torch.randperm(len(examples), generator=generator).tolist()
        names = client_names(self.num_clients)
        return {name: sorted(order[number :: self.num_clients]) for number, name in enumerate(names)}
