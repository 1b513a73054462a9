"""A GGUF file where it lies: its table of contents is read, its tensors stay in the memory-mapped file.

The format is that of llama.cpp (docs/gguf.md in ggml), versions 2 and 3. Of what a file says about its model only
single numbers and words are kept; vocabularies are passed over.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from fedgen.errors import ModelError
from fedgen.model.gguf_types import TYPES, GgufType

VERSIONS = (2, 3)

NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""How numbers lie in a file, by the number of their type; 8 is a text and 9 a list."""

TEXT, LIST = 8, 9

Setting = int | float | bool | str


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes:
        name: as llama.cpp calls it.
        type: what its bytes mean.
        shape: outputs first, as torch has it.
        bytes: its bytes in the mapped file, row by row.
    """

    name: str
    type: GgufType
    shape: tuple[int, ...]
    bytes: UInt8[Tensor, "rows bytes"]


@dataclass(frozen=True)
class GgufFile:
    """What a file holds.

    Attributes:
        settings: single numbers and words about the model, by key.
        tensors: its tensors by name.
    """

    settings: Mapping[str, Setting]
    tensors: Mapping[str, Stored]

    @property
    def architecture(self) -> str:
        """Family of the model, as llama.cpp calls it; empty if the file does not say."""
        return str(self.settings.get("general.architecture", ""))


def open_file(file: Path) -> GgufFile:
    """Maps a file and reads its table of contents. No page of a tensor is touched.

    Raises:
        ModelError: it is no GGUF file, is damaged, or holds a tensor of a type that is not supported.
    """
    with file.open("rb") as opened:
        try:
            # A private map: torch wants memory that could be written to. Nobody does.
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            return _read(file, mapped)
        except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError, OverflowError) as error:
            raise ModelError(f"{file} is no whole GGUF file ({error}); fetch it again") from error


def _read(file: Path, mapped: mmap.mmap) -> GgufFile:
    reader = _Reader(mapped)
    magic, version = mapped[:4], reader.number("<I")
    if magic != b"GGUF" or version not in VERSIONS:
        raise ValueError(f"it begins with {magic!r} and version {version}, not with b'GGUF' and 2 or 3")
    num_tensors, num_settings = int(reader.number("<Q")), int(reader.number("<Q"))
    settings: dict[str, Setting] = {}
    for _ in range(num_settings):
        key = reader.text()
        value = reader.value(int(reader.number("<I")))
        if value is not None:
            settings[key] = value
    table = []
    for _ in range(num_tensors):
        name = reader.text()
        shape = tuple(int(reader.number("<Q")) for _ in range(int(reader.number("<I"))))[::-1]
        table.append((name, shape, int(reader.number("<I")), int(reader.number("<Q"))))
    alignment = int(settings.get("general.alignment", 32))
    begin = -(-reader.place // alignment) * alignment
    content = torch.frombuffer(mapped, dtype=torch.uint8)
    return GgufFile(settings, {entry[0]: _stored(file, content, begin, *entry) for entry in table})


def _stored(
    file: Path,
    content: UInt8[Tensor, " bytes"],
    begin: int,
    name: str,
    shape: tuple[int, ...],
    number: int,
    offset: int,
) -> Stored:
    if number not in TYPES:
        raise ModelError(_unsupported(file, name, number))
    kind = TYPES[number]
    row_bytes = shape[-1] // kind.num_entries * kind.num_bytes
    num_bytes = prod(shape[:-1]) * row_bytes
    start = begin + offset
    if shape[-1] % kind.num_entries or start + num_bytes > len(content):
        raise ValueError(f"{name} does not fit into it")
    return Stored(name, kind, shape, content[start : start + num_bytes].view(-1, row_bytes))


def _unsupported(file: Path, name: str, number: int) -> str:
    from gguf import GGMLQuantizationType

    names = {kind.value: kind.name for kind in GGMLQuantizationType}
    return (
        f"tensor {name} of {file.name} is of type {names.get(number, number)}, which model.dtype=gguf cannot use; it "
        f"can use {', '.join(kind.name for kind in TYPES.values())}. Choose a file with these (Q4_0, Q4_1 and Q8_0 "
        "files have no others), or model.dtype=int8, which converts the file once"
    )


class _Reader:
    """Reads one thing after the other."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.place = 4

    def number(self, form: str) -> int | float | bool:
        """A number, where the last thing ended."""
        (value,) = struct.unpack_from(form, self._mapped, self.place)
        self.place += struct.calcsize(form)
        found: int | float | bool = value
        return found

    def text(self) -> str:
        """A text, which follows its length."""
        length = int(self.number("<Q"))
        self.place += length
        if self.place > len(self._mapped):
            raise ValueError("it ends within a word")
        return self._mapped[self.place - length : self.place].decode()

    def value(self, kind: int) -> Setting | None:
        """A value of some type; None for a list, which is passed over."""
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            return self.number(NUMBERS[kind])
        inner, length = int(self.number("<I")), int(self.number("<Q"))
        if inner in NUMBERS:
            self.place += length * struct.calcsize(NUMBERS[inner])
            return None
        for _ in range(length):
            self.value(inner)
        return None
