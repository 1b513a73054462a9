"""Label skew between owners: how unlike two owners' mixes of classes are.

Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019: an
owner's mix of classes is drawn from a Dirichlet distribution whose concentration sets how uneven it is.
"""

from random import Random


def draw_mix(concentration: float, num_classes: int, rng: Random) -> list[float]:
    """One owner's share of each class, from the symmetric Dirichlet distribution.

    Args:
        concentration: towards 0 each owner knows one class, towards infinity all owners are alike.
        num_classes: how many classes there are.
        rng: where the draws come from.

    Returns:
        Shares that add up to 1.
    """
    gammas = [rng.gammavariate(concentration, 1.0) for _ in range(num_classes)]
    total = sum(gammas)
    if total == 0:  # every draw underflowed: the limit of small concentrations is a single class
        only = rng.randrange(num_classes)
        return [float(label == only) for label in range(num_classes)]
    return [gamma / total for gamma in gammas]
