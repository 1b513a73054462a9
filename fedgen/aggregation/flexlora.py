"""Mean of the products of LoRA factors, cut back to their rank (FlexLoRA).

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources", NeurIPS
2024: what a client has learned is the product BA, and a mean of factors is not the factors of the mean. So the server
averages products and finds new factors by a truncated singular value decomposition. The scale alpha / r is common to
all clients and cancels.

Three things differ here. Clients may hold parts: what is averaged is the *change* of the product, entry by entry over
those who held it, so that an entry that nobody held keeps the old product, and a client that lacks some of the ranks
does not pull what they hold towards zero. (With all ranks on all clients, old product plus mean change is the mean
product.) The singular values are shared evenly, B = U √S and A = √S Vᵀ, where the paper's program gives them to B. And
factors whose product nobody changed stay as they are.

The first ranks are the strongest, so that an extraction that keeps the first k of the axis `rank` sends what FlexLoRA
sends to a client of rank k.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedgen import tree
from fedgen.aggregation.held_sum import HeldSum, advance, magnitude
from fedgen.errors import ClientError
from fedgen.types import Index, State, Update

A, B = "lora_A.weight", "lora_B.weight"


class Pair(NamedTuple):
    """Names of the two factors of one product."""

    a: str
    b: str


@dataclass(frozen=True)
class Total:
    """A running sum of changes to products.

    Attributes:
        state: what the clients started from.
        pairs: stem of the names → the two factors; the product goes by the stem.
        held: changes of the products, and of the tensors that belong to no pair.
    """

    state: State
    pairs: dict[str, Pair]
    held: HeldSum


@dataclass(frozen=True)
class Flexlora:
    """Mean of the products of LoRA factors, cut back to their rank (FlexLoRA).

    Tensors that are not one of two factors get the mean over their holders. Updates that come rounds late are refused:
    they change factors that the decomposition has replaced since. The server needs memory for an fp32
    matrix as large as every weight that is adapted, all at once: tens of times the adapter. To that comes one more such
    matrix while an update is folded, and up to eight for the decomposition, one product at a time. That takes time
    as well: 0.2 s for 1536 × 576, eight times that for twice the width.

    Attributes:
        weighting: each client counts by its number of examples, or all count alike.
    """

    weighting: Literal["num_examples", "uniform"] = "num_examples"

    def init(self, state: State) -> State:
        """Nothing: there is no server optimiser."""
        return {}

    def zero(self, state: State) -> Total:
        """An empty total, which keeps the state to tell products from their changes."""
        pairs = _pairs(state)
        factors = {name for pair in pairs.values() for name in pair}
        shapes = {name: t.shape for name, t in state.items() if name not in factors}
        products = {stem: torch.Size((len(state[pair.b]), state[pair.a].shape[1])) for stem, pair in pairs.items()}
        return Total(state, pairs, HeldSum(shapes | products))

    def add(self, total: Total, update: Update) -> None:
        """Folds one update into the total, in place, product by product.

        Raises:
            ClientError: the update does not fit its plan, is not finite, comes rounds late (`late`), or the sum could
                overflow (`too_large`); the total is unchanged then.
        """
        weight = (update.num_examples if self.weighting == "num_examples" else 1) * update.discount
        largest = magnitude(update, {name: t.shape for name, t in total.state.items()})
        pairs = {stem: pair for stem, pair in total.pairs.items() if not update.plan.keys().isdisjoint(pair)}
        if pairs and update.staleness:
            raise ClientError("late", "the factors that it changes have been replaced since the client was asked")
        bounds = [_bound(total.state, update, pair) for pair in pairs.values()]
        total.held.admit(weight, max([largest, *bounds]))
        plain = {name: kept for name, kept in update.plan.items() if name in total.held.shapes}
        total.held.fold(plain, update.tensors, weight)
        for stem, pair in pairs.items():
            kept, change = _change(total.state, update, pair)
            total.held.fold({stem: kept}, {stem: change}, weight)

    def apply(self, state: State, server: State, total: Total) -> tuple[State, State]:
        """The next state; uses up the total."""
        after = dict(state)
        for name in total.held.shapes:
            taken = total.held.take(name)
            if taken is None:
                continue
            change, held = taken
            if name in state:
                after[name] = advance(state[name], change, held)
                continue
            change.masked_fill_(~held, 0)
            if change.any():
                pair = total.pairs[name]
                after[pair.a], after[pair.b] = _factors(state[pair.a], state[pair.b], change)
        return after, server


def _pairs(state: State) -> dict[str, Pair]:
    """The factors of linear layers, by the stem of their names."""
    pairs = {}
    for name, a in state.items():
        stem = name.removesuffix(A)
        b = state.get(stem + B)
        if name.endswith(A) and b is not None and a.dim() == b.dim() == 2 and len(a) == b.shape[1]:
            pairs[stem] = Pair(name, stem + B)
    return pairs


def _bound(state: State, update: Update, pair: Pair) -> float:
    """Bound on every entry of the change of a product: rank × (|dB| (|A| + |dA|) + |B| |dA|)."""
    a, b = (tree.largest({name: state[name]}) for name in pair)
    da, db = (tree.largest({name: update.tensors[name]}) if name in update.tensors else 0.0 for name in pair)
    return len(state[pair.a]) * (db * (a + da) + b * da)


def _change(
    state: State, update: Update, pair: Pair
) -> tuple[tuple[Index | None, Index | None], Float[Tensor, "rows columns"]]:
    """What a client changes of a product, and the rows and columns of the product that it holds.

    (B + dB)(A + dA) - BA = dB (A + dA) + B dA, with the factors cut to what the client holds.
    """
    ranks_a, columns = update.plan.get(pair.a, (None, None))
    rows, ranks_b = update.plan.get(pair.b, (None, None))
    # A factor that is not sent is not trained in this round: the client holds it along the ranks of the other.
    ranks = ranks_a if pair.a in update.plan else ranks_b
    assert pair.b not in update.plan or _equal(ranks, ranks_b), f"the plan cuts the ranks of {pair} differently"
    part = tree.cut(state, {pair.a: (ranks, columns), pair.b: (rows, ranks)})
    a, b = part[pair.a].float(), part[pair.b].float()
    change = torch.zeros(len(b), a.shape[1])
    if pair.a in update.tensors:
        da = update.tensors[pair.a].float()
        change.addmm_(b, da)
        a = a + da
    if pair.b in update.tensors:
        change.addmm_(update.tensors[pair.b].float(), a)
    return (rows, columns), change


def _equal(a: Index | None, b: Index | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _factors(
    a: Float[Tensor, "rank columns"], b: Float[Tensor, "rows rank"], change: Float[Tensor, "rows columns"]
) -> tuple[Float[Tensor, "rank columns"], Float[Tensor, "rows rank"]]:
    """New factors: those of the nearest matrix of their rank to BA + change."""
    rank = len(a)
    left, values, right = _decompose(change.double().addmm_(b.double(), a.double()), rank)
    # A pair of singular vectors is free to point either way: the largest entry of the left one is made positive.
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    roots = values.sqrt()
    # A rank of no weight has both factors zero and could never learn again. Its row of A points where nothing is yet,
    # as long as the rows of A were; its column of B is zero, so that the product is the same.
    alive = values > values[0] * torch.finfo(torch.float32).eps
    lengths = torch.where(alive, roots, a.double().norm() / rank**0.5)
    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[: len(values)] = ((lengths * signs[0])[:, None] * right).to(a.dtype)
    new_b[:, : len(values)] = (torch.where(alive, roots, 0) * signs * left).to(b.dtype)
    return new_a, new_b


def _decompose(
    product: Float[Tensor, "rows columns"], rank: int
) -> tuple[Float[Tensor, "rows kept"], Float[Tensor, " kept"], Float[Tensor, "kept columns"]]:
    """The largest singular values, falling, and their vectors; of rank min(rank, rows, columns).

    The eigenvectors of PPᵀ span what the left vectors span, and take half the time of a whole decomposition. Squares
    of fp64 resolve values down to 1e-8 of the largest, beyond what fp32 tells apart.
    """
    tall = product.shape[0] > product.shape[1]
    wide = product.T if tall else product
    span = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:]
    left, values, right = torch.linalg.svd(span.T @ wide, full_matrices=False)
    left = span @ left
    return (right.T, values, left.T) if tall else (left, values, right)
