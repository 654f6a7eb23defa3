"""What every trace reader is built from: a file walked line by line under limits, and checked fields.

A reader gets a :class:`Cursor` and yields :class:`~.trace.TraceRequest`. The cursor knows the file and
the line it stands on, so that any complaint names both, and the field.
"""

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import msgspec

from kvload.errors import TraceError
from kvload.workloads.traces.trace import TraceRequest

MAX_LINE_BYTES = 32 * 1024 * 1024
"""Longest line, or item of a JSON array, that is read: room for a million-token prompt as text."""

MAX_TOKENS = 10_000_000
"""Longest prompt or answer a trace may state, in tokens; more is taken for a broken row."""

MAX_SECONDS = 1e12
"""Largest timestamp; with it a float still tells milliseconds apart."""

_GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
_SHOWN_CHARACTERS = 60
_PEEKED_BYTES = 4096
_DIGITS = len(str(MAX_TOKENS))
_UNPACKED_BYTES = 1 << 18


@dataclass(frozen=True)
class Head:
    """The start of a trace file, enough to tell its format.

    ``columns`` are those of a CSV file; ``first`` is the first JSON object, a line or an item of an array.
    """

    columns: tuple[str, ...] = ()
    first: Mapping[str, Any] = field(default_factory=dict)
    is_array: bool = False


class Cursor:
    """A place in a trace file.

    Attributes:
        path: the file, for messages.
        line: number of the line read last, from 1; 0 before the first.
    """

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path = path
        self.line = 0
        self._file = file

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.path}:{self.line}" if self.line else str(self.path)

    def error(self, message: str, *, hint: str | None = None) -> TraceError:
        """A complaint about the line the cursor stands on, to be raised."""
        return TraceError(message, where=self.where, hint=hint)

    def wrong(self, name: str, value: object, wanted: str) -> TraceError:
        """A complaint about one field of the line, to be raised."""
        shown = repr(value)
        if len(shown) > _SHOWN_CHARACTERS:
            shown = shown[:_SHOWN_CHARACTERS] + "..."
        return self.error(f"field '{name}' is {shown}, not {wanted}")

    def peek(self) -> bytes:
        """What comes next, up to some thousand bytes, without white space in front; the cursor stays."""
        try:
            return self._file.peek(_PEEKED_BYTES)[:_PEEKED_BYTES].removeprefix(BOM).lstrip()
        except (OSError, EOFError, zlib.error) as error:
            raise self.error(f"cannot be read: {error}") from error

    def lines(self) -> Iterator[bytes]:
        """All lines that are not blank, without their ends.

        Raises:
            TraceError: a line is too long, or the file cannot be read or unpacked.
        """
        while raw := self._readline():
            self.line += 1
            if len(raw) > MAX_LINE_BYTES:
                raise self.error(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            if self.line == 1:
                raw = raw.removeprefix(BOM)
            if line := raw.strip():
                yield line

    def objects(self) -> Iterator[dict[str, Any]]:
        """The JSON object of every line.

        Raises:
            TraceError: a line is not a JSON object, beside what :meth:`lines` raises.
        """
        decoder = msgspec.json.Decoder()
        for line in self.lines():
            yield self.decoded(line, decoder)

    def decoded(self, text: bytes, decoder: msgspec.json.Decoder[Any] | None = None) -> dict[str, Any]:
        """One JSON object from ``text``."""
        try:
            value = (decoder or msgspec.json.Decoder()).decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(f"not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.error(f"a JSON {_json_kind(value)}, not an object")
        return value

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The file from here on in pieces of up to ``size`` bytes; the line number stays."""
        try:
            while chunk := self._file.read(size):
                yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise self.error(f"cannot be read: {error}") from error

    def rows(self) -> Iterator[list[str]]:
        """The rows of a CSV file, its header first; every row has as many fields as the header.

        Raises:
            TraceError: a row has another number of fields, or is not text, beside what :meth:`lines` raises.
        """
        width = 0
        try:
            for row in csv.reader(self._text()):
                width = width or len(row)
                if len(row) != width:
                    raise self.error(f"the row has {len(row)} fields, the header {width}")
                yield row
        except csv.Error as error:
            raise self.error(f"not a CSV row: {error}") from error

    def columns(self, header: list[str], wanted: tuple[str, ...]) -> tuple[int, ...]:
        """Where the wanted columns stand in a CSV header."""
        names = [name.strip() for name in header]
        for name in wanted:
            if name not in names:
                raise self.error(f"there is no column '{name}'", hint=f"the columns are: {', '.join(names)}")
        return tuple(map(names.index, wanted))

    def tokens(self, value: object, name: str) -> int:
        """A number of tokens, 0 or more; a float or a text of a whole number will do."""
        if type(value) is str and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
            number = int(value)
        elif type(value) is int:
            number = value
        elif isinstance(value, str | float) and not isinstance(value, bool):
            try:
                as_float = float(value)
                number = int(as_float)
            except (ValueError, OverflowError):
                raise self.wrong(name, value, "a number of tokens") from None
            if number != as_float:
                raise self.wrong(name, value, "a whole number of tokens")
        else:
            raise self.wrong(name, value, "a number of tokens")
        if not 0 <= number <= MAX_TOKENS:
            raise self.wrong(name, value, f"between 0 and {MAX_TOKENS}")
        return number

    def seconds(self, value: object, name: str, *, unit_s: float = 1.0) -> float:
        """A time in seconds, 0 or more, from a number or text counted in units of ``unit_s`` seconds."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.wrong(name, value, "a time")
        try:
            number = float(value) * unit_s
        except (ValueError, OverflowError):
            raise self.wrong(name, value, "a time") from None
        if not math.isfinite(number) or not 0 <= number <= MAX_SECONDS:
            raise self.wrong(name, value, "a time of 0 or more")
        return number

    def text(self, value: object, name: str) -> str:
        """A text."""
        if not isinstance(value, str):
            raise self.wrong(name, value, "a text")
        return value

    def ids(self, value: object, name: str) -> list[int]:
        """A list of whole numbers, 0 or more."""
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            raise self.wrong(name, value, "a list of whole numbers of 0 or more")
        if len(value) > MAX_TOKENS:
            raise self.error(f"field '{name}' has more than {MAX_TOKENS} items")
        return value

    def messages(self, value: object, name: str) -> list[dict[str, Any]]:
        """A list of chat messages: at least one, each an object with a text ``role``."""
        if not isinstance(value, list) or not value:
            raise self.wrong(name, value, "a list of chat messages")
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise self.wrong(name, message, "a chat message with a 'role'")
        return value

    def mapping(self, value: object, name: str) -> dict[str, Any]:
        """A JSON object."""
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return value

    def array(self, value: object, name: str) -> list[Any]:
        """A JSON array."""
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list")
        return value

    def needed(self, row: Mapping[str, Any], name: str) -> Any:
        """The field's value; a missing field is an error."""
        if name not in row:
            raise self.error(f"field '{name}' is missing")
        return row[name]

    def _readline(self) -> bytes:
        try:
            return self._file.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            self.line += 1
            raise self.error(f"cannot be read: {error}") from error

    def _text(self) -> Iterator[str]:
        for line in self.lines():
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise self.error(f"not UTF-8 text: {error.reason}") from error


@dataclass(frozen=True)
class Format:
    """One trace format.

    Attributes:
        name: what the user types after ``--format``.
        title: its own name, with the container.
        assumes: units and whatever else the file itself does not say.
        matches: whether a file that starts so is of this format; no file may match two.
        read: yields the requests; arrivals in seconds on any zero, in the file's order.
    """

    name: str
    title: str
    assumes: str
    matches: Callable[[Head], bool]
    read: Callable[[Cursor], Iterator[TraceRequest]]


@contextmanager
def open_trace(path: Path) -> Iterator[BufferedReader]:
    """Open a trace file for reading bytes; a gzip file is unpacked on the way, whatever its name.

    Raises:
        TraceError: it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise TraceError(f"cannot be opened: {error.strerror}", where=str(path)) from error
    with file:
        if file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file) as packed, BufferedReader(packed, _UNPACKED_BYTES) as unpacked:
                # typeshed has no way to say that a buffer over a gzip file is like any other
                yield cast(BufferedReader, unpacked)
        else:
            yield file


def _json_kind(value: object) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")
