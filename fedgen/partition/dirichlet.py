"""Label skew: every label is divided among the clients in uneven shares.

Shares of each label are drawn from a Dirichlet distribution over the clients (Yurochkin et al., "Bayesian Nonparametric
Federated Learning of Neural Networks", ICML 2019, section 4), with the concentration as the one measure of skew (Hsu et
al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019). Hsu et al.
draw each client's mix instead and give all clients equally many; here every example is used, and sizes differ too.
Owners are disregarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch

from fedgen.errors import DataError
from fedgen.partition.names import client_names
from fedgen.types import Example

MAX_DRAWS = 100


@dataclass(frozen=True)
class Dirichlet:
    """Label skew: every label is divided among the clients in uneven shares.

    Attributes:
        num_clients: how many clients there are.
        concentration: 0.1: each client knows few labels; 100: all clients are nearly alike.
        min_examples: a draw in which a client gets fewer is drawn again.
    """

    num_clients: int = 4
    concentration: float = 0.5
    min_examples: int = 1

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_clients", "min_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.concentration > 0:
            raise ValueError(
                f"concentration is {self.concentration}; it must be positive (0.1: very uneven, 100: nearly even)"
            )

    def split(self, examples: Sequence[Example], generator: torch.Generator) -> dict[str, list[int]]:
        """Client → positions of its examples, ascending.

        Raises:
            DataError: examples have no label, there are too few, or no draw gave every client min_examples.
        """
        by_label = self._by_label(examples)
        for _ in range(MAX_DRAWS):
            clients = self._draw(by_label, generator)
            if min(len(positions) for positions in clients) >= self.min_examples:
                return dict(zip(client_names(self.num_clients), map(sorted, clients), strict=True))
        raise DataError(
            f"none of {MAX_DRAWS} draws with concentration {self.concentration} gave each of {self.num_clients} "
            f"clients {self.min_examples} of the {len(examples)} examples; raise concentration, or lower num_clients "
            "or min_examples"
        )

    def _by_label(self, examples: Sequence[Example]) -> dict[str, list[int]]:
        if len(examples) < self.num_clients * self.min_examples:
            raise DataError(
                f"{len(examples)} examples cannot give {self.num_clients} clients {self.min_examples} each; "
                "lower num_clients or min_examples, or add examples"
            )
        by_label: dict[str, list[int]] = {}
        for position, example in enumerate(examples):
            by_label.setdefault(example.label, []).append(position)
        if "" in by_label:
            raise DataError(
                f"{len(by_label[''])} of {len(examples)} examples have no label (the first is number "
                f"{by_label[''][0] + 1}); label them, or use partition=iid or partition=by_owner"
            )
        return dict(sorted(by_label.items()))

    def _draw(self, by_label: dict[str, list[int]], generator: torch.Generator) -> list[list[int]]:
        clients: list[list[int]] = [[] for _ in range(self.num_clients)]
        for positions in by_label.values():
            order = torch.randperm(len(positions), generator=generator).tolist()
            start, share = 0, 0.0
            for client, portion in zip(clients, self._draw_shares(generator), strict=True):
                share += portion
                stop = min(round(share * len(positions)), len(positions))
                client.extend(positions[i] for i in order[start:stop])
                start = stop
            # Shares add up to 1 but for rounding; should a last example be left over, it goes to the last client.
            clients[-1].extend(positions[i] for i in order[start:])
        return clients

    def _draw_shares(self, generator: torch.Generator) -> list[float]:
        """Each client's share of one label; gamma draws are the standard library's: torch's take no generator."""
        rng = Random(int(torch.randint(2**62, (), generator=generator)))
        gammas = [rng.gammavariate(self.concentration, 1.0) for _ in range(self.num_clients)]
        total = sum(gammas)
        if total == 0:  # every draw underflowed: the limit of small concentrations is that one client has it all
            only = rng.randrange(self.num_clients)
            return [float(client == only) for client in range(self.num_clients)]
        return [gamma / total for gamma in gammas]
