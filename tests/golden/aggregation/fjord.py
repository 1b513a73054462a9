"""The rule by which FjORD averages nested blocks, on small numbers, with nothing but lists and fractions.

FjORD (Horvath et al., NeurIPS 2021) as in Flower's baseline: a client of width `p_max` trains the first
ceil(p_max · outputs) rows and ceil(p_max · inputs) columns of every layer; the inputs of the first layer and the
outputs of the last are whole. From the largest width p to the smallest, the block of p becomes the mean over the
clients with p_max ≥ p, weighted by their examples, over whatever a larger p wrote there. A block of no client stays.

`python tests/golden/aggregation/fjord.py` writes fjord.json beside this file.
"""

import json
import math
from fractions import Fraction
from pathlib import Path

WIDTHS = [Fraction(step, 5) for step in range(1, 6)]

# Rows and columns of each layer, and which of the two are cut. A bias has one column.
LAYERS = {
    "first.weight": (10, 3, True, False),
    "first.bias": (10, 1, True, False),
    "middle.weight": (7, 10, True, True),
    "last.weight": (4, 7, False, True),
    "last.bias": (4, 1, False, False),
}

# Width and number of examples of the clients of three rounds.
COHORTS = [
    [(Fraction(2, 5), 3), (Fraction(3, 5), 1), (Fraction(3, 5), 4), (Fraction(1, 5), 2)],
    [(Fraction(1, 5), 5), (Fraction(4, 5), 7)],
    [(Fraction(1), 2), (Fraction(2, 5), 9), (Fraction(4, 5), 1), (Fraction(1), 3)],
]


def block(layer, p):
    rows, columns, cuts_rows, cuts_columns = LAYERS[layer]
    return math.ceil(p * rows) if cuts_rows else rows, math.ceil(p * columns) if cuts_columns else columns


def matrix(seed, rows, columns):
    """Fractions that look like nothing in particular."""
    return [
        [Fraction((seed * 5 + row * 7 + column * 3) % 19 - 9, 8) for column in range(columns)] for row in range(rows)
    ]


def average(layer, old, updates):
    new = [list(row) for row in old]
    for p in reversed(WIDTHS):
        able = [(values, examples) for p_max, examples, values in updates if p_max >= p]
        if not able:
            continue
        total = sum(examples for _, examples in able)
        rows, columns = block(layer, p)
        for row in range(rows):
            for column in range(columns):
                new[row][column] = sum(values[row][column] * examples for values, examples in able) / total
    return new


def plain(layer, values):
    """Lists of numbers as JSON has them; a bias as one list."""
    numbers = [[float(value) for value in row] for row in values]
    return [row[0] for row in numbers] if layer.endswith("bias") else numbers


def kept(layer, p_max):
    rows, columns = block(layer, p_max)
    return [list(range(rows))] if layer.endswith("bias") else [list(range(rows)), list(range(columns))]


def rounds():
    state = {layer: matrix(place, *LAYERS[layer][:2]) for place, layer in enumerate(LAYERS)}
    for round, cohort in enumerate(COHORTS):
        clients, updates = [], {layer: [] for layer in LAYERS}
        for client, (p_max, examples) in enumerate(cohort):
            for place, layer in enumerate(LAYERS):
                values = matrix(11 + 13 * round + 17 * client + place, *block(layer, p_max))
                updates[layer].append((p_max, examples, values))
            clients.append(
                {
                    "num_examples": examples,
                    "kept": {layer: kept(layer, p_max) for layer in LAYERS},
                    "values": {layer: plain(layer, updates[layer][-1][2]) for layer in LAYERS},
                }
            )
        before, state = state, {layer: average(layer, state[layer], updates[layer]) for layer in LAYERS}
        yield {
            "rule": "fjord",
            "round": round,
            "before": {layer: plain(layer, before[layer]) for layer in LAYERS},
            "clients": clients,
            "after": {layer: plain(layer, state[layer]) for layer in LAYERS},
        }


def text():
    return "[\n" + ",\n".join(map(json.dumps, rounds())) + "\n]\n"


def main():
    Path(__file__).with_suffix(".json").write_text(text())


if __name__ == "__main__":
    main()
