"""Text of strangers on a terminal: a server's, a trace's or a log's words are shown, never obeyed.

A terminal obeys escape sequences (set the title, clear the screen, write the clipboard), and rich obeys ``[markup]``.
Model names, versions, tasks, notes, server messages and logs come from elsewhere, so both are taken as plain
characters, in one place: everything kvload prints goes through :func:`console` or :func:`plain`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

PIPE_COLUMNS = 132
"""Width of a report that goes into a file or a pipe where COLUMNS does not say another."""

LEAST_COLUMNS = 40
_BLANK_ENDS = re.compile(" +(?=\n)")

WIDE_COLUMNS = 240
"""Width of a list that goes into a file or a pipe and is read by a program: nothing may be folded."""

_SHOWN_AS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
    | dict.fromkeys([0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
)
"""C0 controls as their Unicode pictures; C1 controls and those that reverse the direction of text as U+FFFD."""


def plain(text: str) -> str:
    """The text with every control character but line end and tab made visible."""
    return text.translate(_SHOWN_AS)


def console(*, stderr: bool = False, width: int | None = None, pipe_width: int | None = PIPE_COLUMNS) -> Console:
    """A rich console on which foreign text is only text: no markup, no emoji codes, no control characters.

    Styles are given as ``rich.text.Text``, never as markup.

    Args:
        stderr: print there instead of on stdout.
        width: columns, whatever the terminal has.
        pipe_width: columns where the output is no terminal; rich's own guess where None.
    """
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            # Before anything is measured: a picture is as wide as a letter, a control character has no width.
            return super().render_str(plain(text), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(plain(segment.text), segment.style)

        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            text = super()._render_buffer(buffer)
            # a terminal's rest of a line may have a colour; in a file blanks at its end say nothing
            return text if self.is_terminal else _BLANK_ENDS.sub("", text)

    made = PlainConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    if width is None and pipe_width is not None and not made.is_terminal:
        asked = os.environ.get("COLUMNS", "") if pipe_width == PIPE_COLUMNS else ""
        made.width = int(asked) if asked.isdecimal() and int(asked) >= LEAST_COLUMNS else pipe_width
    return made
