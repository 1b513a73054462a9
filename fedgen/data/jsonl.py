"""Your own examples from jsonl files, one example per line; the only option that reads data from disk.

A row is in one of the two formats of TRL (Hugging Face, "Dataset formats and types"):

- ``{"prompt": "...", "completion": "..."}``, used as plain text;
- ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``, which goes through
  the model's chat template; the last turn is the answer.

A row may also say its ``owner`` and its ``label``; other keys are ignored. All rows of a data set have one format.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from fedgen import seeds
from fedgen.errors import DataError
from fedgen.types import Dataset, Example, Message, Prompt

ROLES = ("system", "user", "assistant")
EXPECTED = '{"prompt": text, "completion": text} or {"messages": [{"role": text, "content": text}, ...]}'


@dataclass(frozen=True)
class Jsonl:
    """Prompt/completion or chat examples from a jsonl file, or from a folder with one file per owner.

    Attributes:
        path: a file, or a folder whose ``*.jsonl`` files are read. The owner of a row is its ``owner``, else the name
            of its file without the ending.
        eval_fraction: share of each owner's rows that is held out for evaluation (at least one, where it has two).
        eval_path: a file or folder to measure on instead; then every row of ``path`` is trained on.
        public: a file or folder of examples that anybody may see; they are neither trained nor measured on. Null has
            none.
    """

    path: str
    eval_fraction: float = 0.1
    eval_path: str | None = None
    public: str | None = None

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not self.path:
            raise ValueError("path is empty; give a jsonl file, or a folder with one jsonl file per owner")
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"eval_fraction is {self.eval_fraction}; it must be above 0 and below 1")

    def prompt(self, text: str) -> Prompt:
        """The text as the rows put theirs: plain, or as a user's turn after the system turn of the first row, if any.

        Raises:
            DataError: the first row cannot be read.
        """
        first = next(_read(_files(self.path)), None)
        if first is None:
            raise _empty(self.path)
        if isinstance(first.prompt, str):
            return text
        system = first.prompt[:1] if first.prompt[0].role == "system" else ()
        return (*system, Message("user", text))

    def load(self, seed: int) -> Dataset:
        """Reads all rows; the evaluation split is ``held_out``.

        Raises:
            DataError: a file is missing, empty or malformed; file, line and what was expected are named.
        """
        examples = _load(self.path)
        if self.eval_path is None:
            train, held_out = self._hold_out(examples, seed)
        else:
            train, held_out = examples, self._alike(self.eval_path, examples)
        public = [] if self.public is None else self._alike(self.public, examples)
        num_owners = len({example.owner for example in examples})
        description = (
            f"User-provided examples in {_form(examples[0])} form: {len(train)} for training from {num_owners} owners, "
            f"{len(held_out)} for evaluation."
        )
        nobodys = tuple(replace(example, owner="") for example in public)
        return Dataset(tuple(train), {"held_out": tuple(held_out)}, description, nobodys)

    def _alike(self, path: str, examples: list[Example]) -> list[Example]:
        """The examples of another path, if they have the format of these."""
        others = _load(path)
        if _form(others[0]) != _form(examples[0]):
            raise DataError(
                f"{path} has {_form(others[0])} rows and {self.path} has {_form(examples[0])} rows; use one format for "
                "both"
            )
        return others

    def _hold_out(self, examples: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
        """Splits each owner's rows on its own, so that an owner's split does not depend on who else is there."""
        positions: dict[str, list[int]] = {}
        for position, example in enumerate(examples):
            positions.setdefault(example.owner, []).append(position)
        chosen: set[int] = set()
        for owner, own in positions.items():
            num_held_out = min(max(1, round(self.eval_fraction * len(own))), len(own) - 1)
            chosen.update(Random(seeds.integer(seed, "jsonl", owner)).sample(own, num_held_out))
        if not chosen:
            raise DataError(
                f"every owner in {self.path} has a single row, so none can be held out; add rows or set eval_path"
            )
        train = [example for position, example in enumerate(examples) if position not in chosen]
        return train, [examples[position] for position in sorted(chosen)]


def _form(example: Example) -> str:
    return "plain" if isinstance(example.prompt, str) else "chat"


def _empty(path: str | Path) -> DataError:
    return DataError(f"{path} has no rows; expected one {EXPECTED} per line")


def _load(path: str) -> list[Example]:
    files = _files(path)
    examples: list[Example] = []
    for file in files:
        rows = list(_read([file]))
        if not rows:
            raise _empty(file)
        if examples and _form(rows[0]) != _form(examples[0]):
            raise DataError(
                f"{file} has {_form(rows[0])} rows and {files[0]} has {_form(examples[0])} rows; use one format for all"
            )
        examples += rows
    return examples


def _files(path: str) -> list[Path]:
    """The file itself, or the jsonl files of the folder by name."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{path} does not exist; expected a jsonl file, or a folder with one jsonl file per owner")
    files = sorted(file for file in place.glob("*.jsonl") if file.is_file())
    if not files:
        raise DataError(f"{path} has no .jsonl files; expected one per owner, named <owner>.jsonl")
    return files


def _read(files: list[Path]) -> Iterator[Example]:
    """Examples of the files, read as they are asked for; blank lines are skipped."""
    form = ""
    for file in files:
        try:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    where = f"{file}:{number}"
                    text = _decode(line, where)
                    if not text.strip():
                        continue
                    example = _example(text, where, file.stem)
                    form = form or _form(example)
                    if _form(example) != form:
                        raise DataError(f"{where}: a {_form(example)} row among {form} rows; use one format for all")
                    yield example
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from None


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig" if where.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from None


def _example(line: str, where: str, default_owner: str) -> Example:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); expected {EXPECTED}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}, not an object; expected {EXPECTED}")
    owner = _text(row, "owner", where) if "owner" in row else default_owner
    label = _text(row, "label", where) if "label" in row else ""
    if "messages" not in row:
        return Example(_text(row, "prompt", where), _text(row, "completion", where), owner, label)
    if "prompt" in row or "completion" in row:
        raise DataError(f"{where}: both messages and prompt/completion; expected {EXPECTED}")
    messages = _messages(row["messages"], where)
    return Example(messages[:-1], messages[-1].content, owner, label)


def _text(row: dict[str, object], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f"{where}: no {key}; got the keys {', '.join(row) or '(none)'}; expected {EXPECTED}")
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} is {json.dumps(value)[:40]}; expected text in quotation marks")
    if not value.strip():
        raise DataError(f"{where}: {key} is empty; expected some text")
    return value


def _messages(turns: object, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or len(turns) < 2:
        raise DataError(f"{where}: messages must be a list of at least two turns, a user's and the assistant's answer")
    messages = []
    for number, turn in enumerate(turns, start=1):
        place = f"{where}: turn {number}"
        if not isinstance(turn, dict):
            raise DataError(f'{place} is not an object; expected {{"role": text, "content": text}}')
        role = _text(turn, "role", place)
        if role not in ROLES:
            raise DataError(f"{place} has the role {role!r}; known are {', '.join(ROLES)}")
        messages.append(Message(role, _text(turn, "content", place)))
    if messages[-1].role != "assistant":
        raise DataError(f"{where}: the last turn is the {messages[-1].role}'s; expected the assistant's answer")
    return tuple(messages)
