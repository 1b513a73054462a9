"""Handwritten digits as text: the prompt is a picture, one letter per pixel, and the completion is the digit.

The test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI Machine Learning Repository,
1998), which lies inside the package ``scikit-learn`` (BSD-3-Clause): 1797 pictures of 8 × 8 pixels in 17 levels of
grey, about as many of each digit. Who wrote which is not told, so owners are dealt pictures at random; for label skew,
let partition=dirichlet divide them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import zip_longest
from random import Random

from fedgen import seeds
from fedgen.errors import DataError
from fedgen.types import Dataset, Example, Prompt

TEST_SHARE = 5
"""One picture of each digit in this many is for evaluation (rounded)."""


@dataclass(frozen=True)
class Images:
    """Handwritten digits of 8 × 8 pixels, as text: 64 letters in, the digit out.

    Letters go row by row, from `a` (blank) to `q` (full). The evaluation split is ``test``, a fifth of each digit.

    Attributes:
        num_owners: owners of training examples; pictures are dealt to them at random, evenly.
        num_train: training examples of all owners together, about as many of each digit; null takes all there are.
        num_eval: examples of the evaluation split, about as many of each digit; null takes the whole fifth.
        num_public: examples that nobody owns, held out of the training part; 0 for none.
    """

    num_owners: int = 20
    num_train: int | None = None
    num_eval: int | None = None
    num_public: int = 100

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_owners", "num_train", "num_eval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.num_public < 0:
            raise ValueError(f"num_public is {self.num_public}; it must be at least 0 (none)")
        if self.num_train is not None and self.num_train < self.num_owners:
            raise ValueError(f"num_train is {self.num_train}, too few for {self.num_owners} owners; raise it")

    def prompt(self, text: str) -> Prompt:
        """The text as it is: the letters of a picture."""
        return text

    def load(self, seed: int) -> Dataset:
        """Reads the pictures; the seed draws which are held out, and who owns the others.

        Raises:
            DataError: scikit-learn is missing, or there are fewer pictures than were asked for.
        """
        test, rest = _divide(_pictures(), seed)
        public, rest = rest[: self.num_public], rest[self.num_public :]
        train = self._dealt(_first(rest, self.num_train, "num_train"), seed)
        evaluation = {"test": tuple(_first(test, self.num_eval, "num_eval"))}
        description = (
            "Handwritten digits of 8 × 8 pixels as text (Optical Recognition of Handwritten Digits, UCI, as in "
            f"scikit-learn {version('scikit-learn')}, BSD-3-Clause): {len(train)} for training from {self.num_owners} "
            f"owners, {len(evaluation['test'])} for evaluation."
        )
        return Dataset(tuple(train), evaluation, description, tuple(public))

    def _dealt(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """The examples in an order drawn, dealt to the owners one after the other."""
        if len(examples) < self.num_owners:
            raise DataError(
                f"{len(examples)} pictures are left for {self.num_owners} owners; lower num_owners or num_public"
            )
        order = _rng(seed, "owners").sample(examples, len(examples))
        return [replace(example, owner=f"owner-{place % self.num_owners}") for place, example in enumerate(order)]


def _pictures() -> list[Example]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("data=images needs the package scikit-learn: pip install 'fedgen[images]'") from None
    levels, digits = load_digits(return_X_y=True)
    return [
        Example("".join(chr(ord("a") + int(level)) for level in picture), str(digit), label=str(digit))
        for picture, digit in zip(levels, digits.tolist(), strict=True)
    ]


def _divide(pictures: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """A fifth of each digit, and the rest; digits take turns, so that every prefix has about as many of each."""
    test, rest = [], []
    for digit in sorted({picture.label for picture in pictures}):
        own = [picture for picture in pictures if picture.label == digit]
        _rng(seed, digit).shuffle(own)
        num_test = round(len(own) / TEST_SHARE)
        test.append(own[:num_test])
        rest.append(own[num_test:])
    return _in_turn(test), _in_turn(rest)


def _in_turn(parts: Sequence[Sequence[Example]]) -> list[Example]:
    return [example for turn in zip_longest(*parts) for example in turn if example is not None]


def _first(examples: list[Example], number: int | None, name: str) -> list[Example]:
    if number is not None and number > len(examples):
        raise DataError(f"{name} is {number}, and there are {len(examples)} pictures to choose from; lower it")
    return examples[:number]


def _rng(seed: int, purpose: str) -> Random:
    return Random(seeds.integer(seed, "images", purpose))
