"""The rows of a CSV file, however it was written: the separator its header shows, and no row lost in an open quote."""

import csv
import re
from collections.abc import Iterable, Iterator

_SEPARATORS = ",;\t|"
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?:\d{1,2}|\d{4,})")
"""A number as spreadsheets write it where the comma is the decimal sign; three digits behind it may be thousands."""


def csv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """The rows, the header first, of lines without their ends.

    A first line ``sep=;`` names the separator, as spreadsheets write it; else the one that is most frequent in the
    header counts. Where it is no comma, decimal commas become points.

    Raises:
        csv.Error: a quote is not closed, or swallows rows.
    """
    source = iter(lines)
    header = next(source, "")
    named = header.removeprefix("sep=") if header.startswith("sep=") and len(header) == len("sep=") + 1 else None
    if named is not None:
        header = next(source, "")
    separator = named or max(_SEPARATORS, key=header.count)
    taken: list[str] = []

    def given() -> Iterator[str]:
        for line in _with_first(header, source):
            taken.append(line)
            yield line + "\n"

    width = 0
    for row in csv.reader(given(), delimiter=separator, strict=True):
        width = width or len(row)
        # a quote that is closed by a later row's: the lines between are rows themselves
        if len(taken) > 1 and width > 1 and any(line.count(separator) == width - 1 for line in taken[1:-1]):
            raise csv.Error("a quote is opened that is only closed rows later")
        taken.clear()
        yield row if separator == "," else [_with_point(field) for field in row]


def _with_first(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _with_point(field: str) -> str:
    return field.replace(",", ".") if "," in field and _DECIMAL_COMMA.fullmatch(field.strip()) else field
