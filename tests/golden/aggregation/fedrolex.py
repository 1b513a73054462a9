"""The rule by which FedRolex and HeteroFL average parts, on small numbers, with nothing but lists and fractions.

FedRolex (Alam et al., NeurIPS 2022; its program is built on that of HeteroFL, Diao et al., ICLR 2021): a client of
capacity `share` gets, of a layer of K units, the first ceil(share · K) of the list 0 … K - 1 rolled by the round modulo
K; HeteroFL does not roll. A layer's inputs are the units kept of the layer before. The classifier keeps the rows of all
classes, and only those of a client's own classes count. A new weight is the sum over those who held it, divided by
their number; with nobody, the old weight stays.

`python tests/golden/aggregation/fedrolex.py` writes fedrolex.json beside this file.
"""

import json
import math
from fractions import Fraction
from itertools import product
from pathlib import Path

INPUTS, FIRST, SECOND, CLASSES = 3, 6, 4, 5

SHAPES = {
    "conv1.weight": (FIRST, INPUTS),
    "norm1.weight": (FIRST,),
    "conv2.weight": (SECOND, FIRST),
    "norm2.weight": (SECOND,),
    "linear.weight": (CLASSES, SECOND),
    "linear.bias": (CLASSES,),
}

# Capacity and own classes of the clients of three rounds. Nobody is large enough for the whole in the first two.
COHORTS = [
    [(Fraction(1, 2), [0, 1]), (Fraction(1, 4), [1, 3])],
    [(Fraction(1, 2), [4]), (Fraction(1, 2), [0, 4]), (Fraction(1, 8), [2])],
    [(Fraction(1), [0, 1, 2]), (Fraction(1, 4), [2, 3]), (Fraction(1, 2), [1])],
]


def window(units, share, shift):
    shift %= units
    every = list(range(units))
    return (every[units - shift :] + every[: units - shift])[: math.ceil(share * units)]


def kept_positions(share, classes, shift):
    first, second = window(FIRST, share, shift), window(SECOND, share, shift)
    return {
        "conv1.weight": [first, list(range(INPUTS))],
        "norm1.weight": [first],
        "conv2.weight": [second, first],
        "norm2.weight": [second],
        "linear.weight": [classes, second],
        "linear.bias": [classes],
    }


def number(*where):
    """A fraction that looks like nothing in particular."""
    return Fraction(sum((7, 3, 5, 11)[place % 4] * (value + 1) for place, value in enumerate(where)) % 17 - 8, 4)


def average(old, clients):
    new = {}
    for name, entries in old.items():
        total = dict.fromkeys(entries, Fraction(0))
        count = dict.fromkeys(entries, 0)
        for kept, values in clients:
            for position in product(*kept[name]):
                total[position] += values[name][position]
                count[position] += 1
        new[name] = {at: total[at] / count[at] if count[at] else value for at, value in entries.items()}
    return new


def nested(entries, kept):
    """Entries at the crossing of the kept positions, as lists of lists of plain numbers."""
    if len(kept) == 1:
        return [float(entries[(row,)]) for row in kept[0]]
    return [[float(entries[row, column]) for column in kept[1]] for row in kept[0]]


def rounds(rule, rolls):
    whole = {tensor: [list(range(size)) for size in shape] for tensor, shape in SHAPES.items()}
    state = {
        tensor: {position: number(place, *position) for position in product(*whole[tensor])}
        for place, tensor in enumerate(SHAPES)
    }
    for round, cohort in enumerate(COHORTS):
        clients = []
        for client, (share, classes) in enumerate(cohort):
            kept = kept_positions(share, classes, round if rolls else 0)
            values = {
                tensor: {at: number(round, client, place, *at) for at in product(*kept[tensor])}
                for place, tensor in enumerate(SHAPES)
            }
            clients.append((kept, values))
        before, state = state, average(state, clients)
        yield {
            "rule": rule,
            "round": round,
            "before": {tensor: nested(before[tensor], whole[tensor]) for tensor in SHAPES},
            "clients": [
                {"kept": kept, "values": {tensor: nested(values[tensor], kept[tensor]) for tensor in SHAPES}}
                for kept, values in clients
            ],
            "after": {tensor: nested(state[tensor], whole[tensor]) for tensor in SHAPES},
        }


def text():
    found = [*rounds("fedrolex", rolls=True), *rounds("heterofl", rolls=False)]
    return "[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n"


def main():
    Path(__file__).with_suffix(".json").write_text(text())


if __name__ == "__main__":
    main()
