"""The container format GGUF (versions 2 and 3): facts about a model, and where its tensors lie.

Source: the ggml project's ``docs/gguf.md``. Files come from strangers: every length is held against the file's size,
and nothing is read that was not asked for.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.errors import UsageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_FACTS = 1 << 16
MOST_TENSORS = 1 << 16
MOST_ELEMENTS = 1 << 24
"""Of an array among the facts: the largest are vocabularies and their merges."""
MOST_DIMENSIONS = 4

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        name: as the file has it.
        shape: outermost dimension first, as numpy has it.
        kind: number of its storage type.
        offset: bytes from the start of the tensors' data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class GgufFile:
    """An open file.

    Args:
        path: the file.

    Attributes:
        facts: key to value: numbers, texts and lists of them.
        tensors: in the file's order.

    Raises:
        UsageError: it cannot be read, is no GGUF file, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(path)) from error
        self._place = 0
        try:
            self.facts, self.tensors = self._header()
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise self._damaged("it ends early or holds what is no text") from error

    def _damaged(self, what: str) -> UsageError:
        return UsageError(f"no sound GGUF file: {what}", where=str(self.path))

    def _header(self) -> tuple[dict[str, Any], tuple[TensorInfo, ...]]:
        if self._data[:4] != MAGIC:
            raise self._damaged("it does not begin with 'GGUF'")
        self._place = 4
        version, tensors, facts = self._number("<I"), self._number("<Q"), self._number("<Q")
        if version not in VERSIONS:
            raise self._damaged(f"version {version} is not one of {', '.join(map(str, VERSIONS))}")
        if facts > MOST_FACTS or tensors > MOST_TENSORS:
            raise self._damaged(f"{facts} facts and {tensors} tensors are more than a model has")
        found = {self._text(): self._value() for _ in range(facts)}
        infos = tuple(self._tensor_info() for _ in range(tensors))
        alignment = found.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise self._damaged(f"an alignment of {alignment}")
        self._start = -(-self._place // alignment) * alignment
        return found, infos

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._place)
        self._place += struct.calcsize(form)
        return value

    def _text(self) -> str:
        length = self._number("<Q")
        if length > len(self._data) - self._place:
            raise self._damaged("a text is longer than the file")
        text = self._data[self._place : self._place + length].decode("utf-8")
        self._place += length
        return text

    def _value(self) -> Any:
        kind = self._number("<I")
        return self._array() if kind == _ARRAY else self._scalar(kind)

    def _scalar(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind not in _NUMBERS:
            raise self._damaged(f"a value of type {kind}")
        return self._number(_NUMBERS[kind])

    def _array(self) -> list[Any]:
        kind, length = self._number("<I"), self._number("<Q")
        if length > min(MOST_ELEMENTS, len(self._data) - self._place):
            raise self._damaged(f"an array of {length} elements")
        return [self._scalar(kind) for _ in range(length)]

    def _tensor_info(self) -> TensorInfo:
        name, dimensions = self._text(), self._number("<I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise self._damaged(f"tensor {name[:60]} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        return TensorInfo(name, shape[::-1], self._number("<I"), self._number("<Q"))

    def bytes_of(self, tensor: TensorInfo, size: int) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, not copied.

        Args:
            size: how many there are.

        Raises:
            UsageError: they reach beyond the file.
        """
        start = self._start + tensor.offset
        if start + size > len(self._data):
            raise self._damaged(f"tensor {tensor.name[:60]} reaches beyond its end")
        return np.frombuffer(self._data, np.uint8, size, start)

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.tensors)
