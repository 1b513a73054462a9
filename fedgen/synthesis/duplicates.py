"""Finds texts that say nothing new: MinHash signatures, sorted into buckets (Broder, 1997; Leskovec et al., chapter 3).

The library proposes pairs; each is then compared by the shares of shingles that they really have in common, so that
whether a draft is rejected does not depend on the luck of a hash.
"""

import importlib.util
from collections.abc import Sequence

from fedgen.errors import ConfigError
from fedgen.synthesis.features import ngrams, normal
from fedgen.task import Draft

NUM_HASHES = 64
HASH_SEED = 1
RECALL = (0.1, 0.9)
"""Weights of proposing too many pairs and of missing some, when the library chooses its bands."""

HIGHEST = 0.9
"""Threshold of the proposals at most: the library has no bands for one near 1."""

SHINGLE_CHARACTERS = 4
SHINGLE_READINGS = 3


def shingles(draft: Draft, *, by_words: bool) -> frozenset[str]:
    """Pieces of the text: runs of characters, or of words where those are numbers.

    The answer stands in each of them: texts are compared with those alone that teach the same answer. (A command with
    40 percent in place of 45 is nearly the same text, and not the same lesson.)
    """
    if by_words:
        pieces = ngrams(draft.text.split(), SHINGLE_READINGS)
    else:
        text = f" {normal(draft.text)} "
        pieces = [text[i : i + SHINGLE_CHARACTERS] for i in range(max(1, len(text) - SHINGLE_CHARACTERS + 1))]
    return frozenset(f"{draft.answer}\x1f{piece}" for piece in pieces)


def near(drafts: Sequence[Draft], threshold: float, *, by_words: bool) -> list[int | None]:
    """For each draft the position of an earlier one that it is nearly the same as, or None.

    Args:
        drafts: in order; of two that are alike the first stays. What is itself nearly the same as another is nobody's
            original.
        threshold: Jaccard similarity of their shingles from which on two are nearly the same.
        by_words: shingles are of words, not of characters.

    Raises:
        ConfigError: datasketch is not installed.
    """
    if importlib.util.find_spec("datasketch") is None:
        raise ConfigError(
            'near duplicates are found with datasketch, which is missing: pip install "fedgen[synthesis]", or do '
            "without (filters.near_duplicate=null)"
        )
    from datasketch import MinHash, MinHashLSH

    sets = [shingles(draft, by_words=by_words) for draft in drafts]
    signatures = MinHash.generator(
        ([piece.encode() for piece in sorted(pieces)] for pieces in sets), num_perm=NUM_HASHES, seed=HASH_SEED
    )
    index = MinHashLSH(threshold=min(threshold, HIGHEST), num_perm=NUM_HASHES, weights=RECALL)
    found: list[int | None] = []
    for place, signature in enumerate(signatures):
        alike = (other for other in sorted(index.query(signature)) if jaccard(sets[other], sets[place]) >= threshold)
        original = next(alike, None)
        found.append(original)
        if original is None:
            index.insert(place, signature, check_duplication=False)
    return found


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of the shingles of both that are in each.

    >>> jaccard(frozenset("ab"), frozenset("bc"))
    0.3333333333333333
    """
    return len(one & other) / len(one | other) if one | other else 1.0
