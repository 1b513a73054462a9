"""What a probe found: a word, what was got, and what to do about it."""

from dataclasses import asdict, dataclass
from typing import Literal

Word = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The answer of one probe.

    Attributes:
        probe: what was looked at.
        word: `ok`; `warn` if it works but not well or could not be looked at; `fail` if it will not work.
        got: what was found.
        advice: what to do; empty where all is well.
    """

    probe: str
    word: Word
    got: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """The same as plain values."""
        return asdict(self)


def worst(findings: "list[Finding]") -> Word:
    """`fail` before `warn` before `ok`."""
    words = {finding.word for finding in findings}
    return "fail" if "fail" in words else "warn" if "warn" in words else "ok"
