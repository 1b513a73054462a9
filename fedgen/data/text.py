"""English prose that comes with every Python: the help topics of its reference, divided among owners.

``pydoc_data.topics`` is what ``help("topics")`` prints (Python Software Foundation License Version 2). Its wording
differs between versions of Python, so the same seed gives the same examples on the same version only; the fingerprint
of a run's data tells. A topic is cut into windows that do not overlap; the first few characters of a window are the
prompt, and what follows is the completion, so that nearly all characters carry loss.

Topics quote each other at length. A paragraph is kept in the shortest topic that has it and nowhere else, and no two
windows begin alike, so that nothing that is measured on was trained on. Tables, which are half rules and spaces, are
left out.

Two splits measure two kinds of novelty:

- ``new_windows``: other windows of the topics that are trained on;
- ``new_topics``: windows of topics that take no part.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from fedgen import seeds
from fedgen.errors import DataError
from fedgen.types import Dataset, Example, Prompt

RULE = "+--"
"""What a table is told by."""

Topics = Mapping[str, Sequence[Example]]
"""Topic → its windows, in the order of the text."""


@dataclass(frozen=True)
class Text:
    """The help topics of Python's language reference, in windows of characters; each owner has a few topics.

    Attributes:
        num_owners: owners of training examples. Topics are dealt out so that all have about as much as the longest
            topics allow; an owner bears the name of its longest topic.
        window: characters of each example.
        prompt_length: how many of them are the prompt; the rest is to be continued with.
        num_eval: examples of each evaluation split.
        num_public: examples that nobody owns, out of topics that nothing else is taken from; 0 for none.
    """

    num_owners: int = 20
    window: int = 128
    prompt_length: int = 16
    num_eval: int = 200
    num_public: int = 48

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("num_owners", "prompt_length", "num_eval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_public < 0:
            raise ValueError(f"num_public is {self.num_public}; it must be at least 0 (none)")
        if self.window <= self.prompt_length:
            raise ValueError(
                f"window is {self.window}; it must be above prompt_length ({self.prompt_length}), so that there is "
                "something to continue with"
            )

    def prompt(self, text: str) -> Prompt:
        """The text as it is: the beginning of what is to be continued."""
        return text

    def load(self, seed: int) -> Dataset:
        """Cuts the topics into windows and deals them out.

        The seed draws the topics that take no part, and the windows that are held out.

        Raises:
            DataError: this Python comes without its help topics, or they have too little text.
        """
        topics = _windows(_paragraphs(_help_topics()), self.window, self.prompt_length)
        names = sorted(topics)
        _rng(seed, "topics").shuffle(names)
        num_windows = sum(map(len, topics.values()))
        new_topics = self._take(topics, names, self.num_eval, "new_topics", seed)
        public = self._take(topics, names, self.num_public, "public", seed)
        owned = self._owned(topics, names)
        held_out = self._held_out(owned, seed)
        train = [example for position, example in enumerate(owned) if position not in held_out]
        if len({example.owner for example in train}) < self.num_owners:
            raise DataError(
                f"the help topics give {num_windows} windows of {self.window} characters, and num_eval={self.num_eval} "
                f"leaves some of {self.num_owners} owners without any; lower num_eval, num_owners or window"
            )
        description = (
            f"Text of the help topics of Python {platform.python_version()} (pydoc_data.topics, PSF License): "
            f"{len(train)} windows of {self.window} characters for training, from {self.num_owners} owners, and "
            f"{self.num_eval} per evaluation split; the first {self.prompt_length} characters of each are the prompt."
        )
        evaluation = {"new_windows": tuple(owned[position] for position in held_out), "new_topics": new_topics}
        return Dataset(tuple(train), evaluation, description, tuple(replace(example, owner="") for example in public))

    def _take(
        self, topics: Topics, names: list[str], num_examples: int, purpose: str, seed: int
    ) -> tuple[Example, ...]:
        """Takes topics off the list until they have enough windows; then draws among these.

        Topics that alone would be more than half of it come last, so that a split is of several topics.
        """
        pool: list[Example] = []
        for name in sorted(names, key=lambda name: 2 * len(topics[name]) > num_examples):
            if len(pool) >= num_examples:
                break
            pool += topics[name]
            names.remove(name)
        if len(pool) < num_examples:
            raise DataError(
                f"the help topics have {len(pool)} windows of {self.window} characters left for {purpose}, and "
                f"{num_examples} were asked for; lower num_eval, num_public or window"
            )
        return tuple(_rng(seed, purpose).sample(pool, num_examples))

    def _owned(self, topics: Topics, names: Sequence[str]) -> list[Example]:
        """Windows of the topics, by owner: the longest topic that is left goes to who has least."""
        longest_first = sorted((name for name in names if topics[name]), key=lambda name: (-len(topics[name]), name))
        if len(longest_first) < self.num_owners:
            raise DataError(
                f"{len(longest_first)} help topics are left for {self.num_owners} owners; lower num_owners, num_eval, "
                "num_public or window"
            )
        hands: list[list[Example]] = [[] for _ in range(self.num_owners)]
        for name in longest_first:
            hand = min(hands, key=len)
            owner = hand[0].owner if hand else name
            hand += [replace(example, owner=owner) for example in topics[name]]
        return [example for hand in hands for example in hand]

    def _held_out(self, owned: Sequence[Example], seed: int) -> list[int]:
        """Positions of the windows to be measured on, in the order drawn, so that every prefix is a fair sample."""
        return _rng(seed, "new_windows").sample(range(len(owned)), min(self.num_eval, len(owned)))


def _help_topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "data=text needs Python's help topics (pydoc_data.topics), and this Python comes without them; "
            "use one from python.org or your distribution's full package"
        ) from None
    return topics


def _paragraphs(topics: Mapping[str, str]) -> dict[str, str]:
    """The topics, shortest first, without tables and without what a topic before has, spaces and line breaks aside."""
    seen = {""}
    left = {}
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        new = []
        for paragraph in re.split(r"\n\s*\n", topics[name].strip("\n")):
            words = " ".join(paragraph.split())
            if words not in seen and RULE not in paragraph:
                seen.add(words)
                new.append(paragraph)
        left[name] = "\n\n".join(new)
    return left


def _windows(topics: Mapping[str, str], window: int, prompt_length: int) -> dict[str, list[Example]]:
    """Topic → windows one after the other; a rest that is too short is left out, as are windows that begin alike."""
    seen: set[str] = set()
    cut: dict[str, list[Example]] = {}
    for name, text in topics.items():
        cut[name] = []
        for start in range(0, len(text) - window + 1, window):
            prompt, completion = text[start : start + prompt_length], text[start + prompt_length : start + window]
            if prompt.strip() and completion.strip() and prompt not in seen:
                seen.add(prompt)
                cut[name].append(Example(prompt, completion, name, name))
    return cut


def _rng(seed: int, purpose: str) -> Random:
    return Random(seeds.integer(seed, "text", purpose))
