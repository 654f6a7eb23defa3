"""The console that reports are printed on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

REPORT_COLUMNS = 132
"""Width of a report that goes into a file or a pipe: wide enough that no figure is cut."""


def report_console() -> "Console":
    """Standard output: as wide as the terminal is, or wide enough for any table where it is none."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=REPORT_COLUMNS)
