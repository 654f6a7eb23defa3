"""What runs show while they are made: lines that are drawn anew, on stderr, where that is a terminal."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from kvload.workloads.run.live import Progress


class Display:
    """Progress and notices of a run. Not on a terminal, or when quiet, only notices are printed."""

    def __init__(self, *, quiet: bool = False) -> None:
        from kvload.terminal import console

        self._console = console(stderr=True)
        self._quiet = quiet
        self._live: Any = None
        self._lanes: dict[str, Progress] = {}
        self._whole: Callable[[], str] | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the progress away; notices are printed all the same."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def within(self, whole: Callable[[], str]) -> None:
        """Put a line over the progress of each run, on how far an experiment of many runs is; asked for every time."""
        self._whole = whole

    def notice(self, text: str) -> None:
        """Print a sentence that stays."""
        from rich.text import Text

        from kvload.terminal import plain

        if self._live is not None:
            self._live.console.print(Text(text))
        else:
            print(plain(text), file=sys.stderr, flush=True)

    def progress(self, progress: "Progress", lane: str | None = None) -> None:
        """Draw the run as it stands.

        Args:
            lane: where it goes on, if others go on beside it: each has a row of its own.
        """
        if self._live is None:
            return
        if lane is None:
            self._live.update(_draw(progress, None if self._whole is None else self._whole()), refresh=True)
            return
        self._lanes[lane] = progress
        self._live.update(_draw_lanes(self._lanes, None if self._whole is None else self._whole()), refresh=True)


def _draw_lanes(lanes: "dict[str, Progress]", whole: str | None = None) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, progress in sorted(lanes.items()):
        left = "" if progress.left_s is None or progress.state == "ended" else f"{progress.left_s:.0f} s left"
        sent = f"sent {progress.sent}/{progress.planned}, failed {progress.failed}"
        table.add_row(name, progress.state, sent, f"TPOT {_ms(progress.tpot_p50_s)}", left)
    return table if whole is None else Group(Text(whole, style="bold"), table)


def _draw(progress: "Progress", whole: str | None = None) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    ended = progress.done + progress.failed + progress.unsent
    grid = Table.grid(padding=(0, 2))
    left = "" if progress.left_s is None else f"{progress.left_s:.0f} s left"
    grid.add_row(progress.state, ProgressBar(total=max(progress.planned, 1), completed=ended, width=30), left)
    words: list[str | Text] = [
        f"sent {progress.sent}/{progress.planned}",
        f"done {progress.done}",
        Text(f"failed {progress.failed}", style="red" if progress.failed else ""),
        f"in flight {progress.in_flight}",
        f"TTFT {_ms(progress.ttft_p50_s)} (p99 {_ms(progress.ttft_p99_s)})",
        f"TPOT {_ms(progress.tpot_p50_s)}",
        f"lag p99 {_ms(progress.lag_p99_s)}",
    ]
    if progress.attainment is not None:
        words.append(f"SLO {progress.attainment:.1%}")
    table = Table.grid()
    if whole is not None:
        table.add_row(Text(f"{whole}, {ended}/{progress.planned} done", style="bold"))
    table.add_row(grid)
    table.add_row(Text("  ").join(word if isinstance(word, Text) else Text(word) for word in words))
    return table


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:.1f} ms" if value_s < 10 else f"{value_s:.1f} s"
