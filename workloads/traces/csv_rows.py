"""The rows of a CSV file, however it was written: the separator its header shows, and no row lost in an open quote."""

import csv
from collections.abc import Iterable, Iterator

_SEPARATORS = ",;\t|"


def separator_of(header: str) -> str:
    """What separates the columns: what a line ``sep=;`` names, as spreadsheets write it, or what is most frequent."""
    return header[-1] if _names_separator(header) else max(_SEPARATORS, key=header.count)


def _names_separator(line: str) -> bool:
    return line.startswith("sep=") and len(line) == len("sep=;")


def csv_rows(lines: Iterable[str], *, texts: bool = False) -> Iterator[list[str]]:
    """The rows, the header first, of lines without their ends.

    Args:
        texts: fields may hold texts of several lines, which may look like rows. Where not, a quote that takes in what
            looks like a row was not meant to.

    Raises:
        csv.Error: a quote is not closed, or takes in rows.
    """
    source = iter(lines)
    header = next(source, "")
    separator = separator_of(header)
    taken: list[str] = []

    def given() -> Iterator[str]:
        if header and not _names_separator(header):
            taken.append(header)
            yield header + "\n"
        for line in source:
            taken.append(line)
            yield line + "\n"

    width = 0
    for row in csv.reader(given(), delimiter=separator, strict=True):
        width = width or len(row)
        if not texts and width > 1 and any(line.count(separator) == width - 1 for line in taken[1:-1]):
            raise csv.Error("a quote is opened that is only closed rows later")
        taken.clear()
        yield row
