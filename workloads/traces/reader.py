"""What every trace reader is built from: a file walked line by line under limits, and checked fields.

A reader gets a :class:`Cursor` and yields :class:`~.trace.TraceRequest`. The cursor knows the file and
the line it stands on, so that any complaint names both, and the field.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from kvload.errors import TraceError
from kvload.workloads.traces.containers import BOM, UNREADABLE
from kvload.workloads.traces.csv_rows import csv_rows
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.survey import SURVEYED_ROWS, TICKS_PER_S, UNITS, Survey, block_count
from kvload.workloads.traces.timestamps import TickParser
from kvload.workloads.traces.trace import TraceRequest

MAX_LINE_BYTES = 32 * 1024 * 1024
"""Longest line, or item of a JSON array, that is read: room for a million-token prompt as text."""

MAX_TOKENS = 10_000_000
"""Longest prompt or answer a trace may state, in tokens; more is taken for a broken row."""

MAX_SECONDS = 1e12
"""Largest timestamp; with it a float still tells milliseconds apart."""

_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?:\d{1,2}|\d{4,})", re.ASCII)
_SHOWN_CHARACTERS = 60
_PEEKED_BYTES = 4096
_EPOCH_TICKS = 1_000_000_000 * TICKS_PER_S
"""Times since 1970 are dates; a trace that counts from its own start never comes so far."""

_DIGITS = len(str(MAX_TOKENS))


@dataclass(frozen=True)
class Head:
    """The start of a trace file, enough to tell its format.

    ``columns`` are those of a CSV file; ``first`` is the first JSON object, a line or an item of an array.
    """

    columns: tuple[str, ...] = ()
    first: Mapping[str, Any] = field(default_factory=dict)

    def knows(self, *names: str) -> bool:
        """Whether the first row has a value under any of these names."""
        return any(self.first.get(name) is not None or name in self.columns for name in names)

    def explained(self, names: Collection[str]) -> int:
        """How many of the first row's fields, or of the columns, are among ``names``."""
        return len((self.first.keys() | set(self.columns)) & set(names))


@dataclass
class Reading:
    """How a trace is read: units that are settled, and what is noted on the way.

    Attributes:
        time_unit: the unit of all times that are plain numbers; None for the format's own.
        block_tokens: tokens in a block; None for the format's own.
        notes: what to tell the user.
        survey: takes the raw values down while the first rows are looked at; None when the trace is read.
    """

    time_unit: str | None = None
    block_tokens: int | None = None
    notes: Notes = field(default_factory=Notes)
    survey: Survey | None = None


class Cursor:
    """A place in a trace file.

    Attributes:
        path: the file, for messages.
        line: number of the line (of an array: of the item) read last, from 1; 0 before the first.
        notes: what to tell the user about the trace as a whole.
    """

    def __init__(self, path: Path, file: BufferedReader, reading: Reading | None = None) -> None:
        self.path = path
        self.line = 0
        self._file = file
        self._reading = reading or Reading()
        self.notes = self._reading.notes
        self._date_times = TickParser()
        self._zero: int | None = None
        self._has_dates: bool | None = None

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
        except UNREADABLE as error:
            raise self.error(f"cannot be read: {error}") from error

    def lines(self) -> Iterator[bytes]:
        """All lines that are not blank, without their ends and the white space around them.

        Raises:
            TraceError: a line is too long, or the file cannot be read or unpacked.
        """
        return map(bytes.strip, self._filled_lines())

    def _filled_lines(self) -> Iterator[bytes]:
        while raw := self._readline():
            self.line += 1
            if len(raw) > MAX_LINE_BYTES:
                raise self.error(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            if self.line == 1:
                raw = raw.removeprefix(BOM)
            if raw.strip():
                yield raw

    def objects(self) -> Iterator[dict[str, Any]]:
        """The JSON object of every line, or every object of the one array that the file is.

        Raises:
            TraceError: something is not a JSON object, beside what :meth:`lines` raises.
        """
        from kvload.workloads.traces.json_array import array_items

        decoder = msgspec.json.Decoder()
        for text in array_items(self) if self.peek().startswith(b"[") else self.lines():
            if text in {b"{", b"["}:
                raise self.error(
                    "the JSON is spread over several lines (pretty-printed), not one object a line",
                    hint="jq -c . FILE > trace.jsonl",
                )
            yield self.decoded(text, decoder)

    def decoded(self, text: bytes, decoder: msgspec.json.Decoder[Any] | None = None) -> dict[str, Any]:
        """One JSON object from ``text``."""
        try:
            value = (decoder or msgspec.json.Decoder()).decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(f"not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.error(f"a JSON {_json_kind(value)}, not an object")
        # the decoder takes the last of several; what is found no more often than it was decoded does not stand twice
        names = Counter(_names(value))
        if any(text.count(b'"%b"' % name.encode()) > count for name, count in names.items()) and (
            name := _twice_told(text)
        ):
            raise self.error(f"field '{name}' stands twice in one object, with different values")
        return value

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The file from here on in pieces of up to ``size`` bytes; the line number stays."""
        try:
            while chunk := self._file.read(size):
                yield chunk
        except UNREADABLE as error:
            raise self.error(f"cannot be read: {error}") from error

    def rows(self, *, texts: bool = False) -> Iterator[list[str]]:
        """The rows of a CSV file, its header first; every row has as many fields as the header.

        Args:
            texts: fields may hold texts of several lines.

        Raises:
            TraceError: a row has another number of fields, or is not text, or a column's name stands twice, beside what
                :meth:`lines` raises.
        """
        width = 0
        try:
            for row in csv_rows(self._text(), texts=texts):
                if not width:
                    width = len(row)
                    twice = sorted({name for name in map(str.strip, row) if name and row.count(name) > 1})
                    if twice:
                        raise self.error(f"the header has the column '{twice[0]}' more than once")
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
        value = _with_point(value)
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
        value = _with_point(value)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.wrong(name, value, "a time")
        try:
            number = float(value) * unit_s
        except (ValueError, OverflowError):
            raise self.wrong(name, value, "a time") from None
        if not math.isfinite(number) or not 0 <= number <= MAX_SECONDS:
            raise self.wrong(name, value, "a time of 0 or more")
        return number

    def time(self, value: object, name: str, *, unit: str, is_open: bool = False) -> float:
        """A moment on the trace's clock, in seconds since the first one that was asked about.

        A text may be a date-time (ISO 8601, UTC where it names no zone), which needs no unit. A number counts in
        ``unit``, unless the user names another one or (``is_open``) the trace's own rows show one.

        Args:
            unit: ``s``, ``ms``, ``us`` or ``ns``, as the format says.
            is_open: whether files of this format are known to count in other units as well.

        Raises:
            TraceError: it is no time.
        """
        value = _with_point(value)
        ticks = self._date_times.ticks(value) if isinstance(value, str) else None
        if ticks is None:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise self.wrong(name, value, "a time")
            ticks = self._number_of_ticks(value, name, unit, is_open=is_open)
            is_date = ticks >= _EPOCH_TICKS
        else:
            is_date = True
        if self._reading.survey is None:
            self._has_dates = is_date if self._has_dates is None else self._has_dates
            if self._has_dates != is_date:
                raise self.wrong(name, value, "on the same clock as the rows before: some are dates, some count from 0")
        self._zero = ticks if self._zero is None else self._zero
        return (ticks - self._zero) / TICKS_PER_S

    def _number_of_ticks(self, value: float | str, name: str, unit: str, *, is_open: bool) -> int:
        try:
            number = value if isinstance(value, int) else float(value)
        except ValueError:
            raise self.wrong(name, value, "a time") from None
        # more than nanoseconds since 1970 could count, and integers without bound are no floats
        if not 0 <= number <= MAX_SECONDS * 1e9:
            raise self.wrong(name, value, "a time of 0 or more")
        survey = self._reading.survey
        if survey is not None and len(survey.times) < SURVEYED_ROWS:
            survey.unit, survey.is_open = unit, is_open
            survey.times.append(float(number))
        scale = UNITS[self._reading.time_unit or unit]
        if isinstance(number, int):  # exact, where a float could not hold the digits
            ticks = number * int(scale) if scale >= 1 else number // round(1 / scale)
        else:
            ticks = round(number * scale)
        if survey is None and ticks > MAX_SECONDS * TICKS_PER_S:
            raise self.wrong(name, value, "a time in seconds" if scale == TICKS_PER_S else "a time")
        return ticks

    def pause(self, value: object, name: str, *, unit: str) -> float:
        """A length of time in seconds, counted in the unit that the trace's times are found to be in."""
        return self.seconds(value, name, unit_s=UNITS[self._reading.time_unit or unit] / TICKS_PER_S)

    def blocks(self, value: object, name: str, *, length: int, size: int) -> tuple[list[int], int]:
        """The block ids of a prompt of ``length`` tokens, and the tokens of a block.

        Args:
            size: tokens of a block as the format says; another one counts where the user names it or the lengths of
                the first rows show it.

        Raises:
            TraceError: there are more ids than such blocks begin, or fewer than are whole.
        """
        ids = self.ids(value, name)
        survey = self._reading.survey
        if survey is not None and len(survey.blocks) < SURVEYED_ROWS:
            survey.block_tokens = size
            survey.blocks.append((len(ids), length))
            return ids, size
        tokens = self._reading.block_tokens or size
        begun = block_count(length, tokens, whole=False)
        # a size that was found or named may count whole blocks only
        least = begun if self._reading.block_tokens is None else block_count(length, tokens, whole=True)
        if not least <= len(ids) <= begun:
            raise self.error(
                f"field '{name}' has {len(ids)} blocks where a prompt of {length} tokens makes {begun} of {tokens}",
                hint="say how long a block is: --block-tokens",
            )
        return ids, tokens

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
        except UNREADABLE as error:
            self.line += 1
            raise self.error(f"cannot be read: {error}") from error

    def _text(self) -> Iterator[str]:
        for line in self._filled_lines():
            try:
                # white space at a line's ends may be empty fields
                yield line.rstrip(b"\r\n").decode("utf-8")
            except UnicodeDecodeError as error:
                raise self.error(f"not UTF-8 text: {error.reason}") from error


@dataclass(frozen=True)
class Format:
    """One trace format.

    Attributes:
        name: what the user types after ``--format``.
        title: its own name, with the container.
        assumes: units and whatever else the file itself does not say.
        matches: 0 where a file that starts so is not of this format; else how many of its first row's fields the
            format knows (:meth:`Head.explained`). The format that knows most of them reads the file.
        read: yields the requests; arrivals in seconds on any zero, in the file's order.
    """

    name: str
    title: str
    assumes: str
    matches: Callable[[Head], int]
    read: Callable[[Cursor], Iterator[TraceRequest]]


def _with_point(value: object) -> object:
    """A number with a decimal comma, with a point; three digits behind the comma may be thousands, and stay."""
    if isinstance(value, str) and "," in value and _DECIMAL_COMMA.fullmatch(value.strip()):
        return value.replace(",", ".")
    return value


def _twice_told(text: bytes) -> str | None:
    """A field that has several values within one object of a JSON text; None where there is none."""
    found: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        found.extend(name for name, value in pairs if seen.setdefault(name, value) != value)
        return seen

    try:
        json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return found[0] if found else None


def _names(value: object) -> Iterator[str]:
    """The names of all fields in a JSON value, as often as they stand in it."""
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _names(inner)
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for inner in value:
            yield from _names(inner)


def _json_kind(value: object) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")
