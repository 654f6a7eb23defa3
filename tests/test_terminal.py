"""Foreign text on a terminal: nothing of it is obeyed, all of it is readable."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from kvload.terminal import console, plain

EVIL = "\x1b]0;title\x07 \x1b[2J \x9b2J \x1b]52;c;aGk=\x07 \u202etxt [/nope] [bold]x[/bold] :smile: \x7f"


def printed(text: str, columns: int = 200) -> str:
    made = console(width=columns)
    made.file = io.StringIO()
    table = Table(text)
    table.add_row(text)
    made.print(table)
    made.print(text, soft_wrap=True)
    return str(made.file.getvalue())


def test_neither_escapes_nor_markup_are_obeyed() -> None:
    out = printed(EVIL)
    assert not any(unicodedata.category(char) in {"Cc", "Cf"} and char not in "\n\t" for char in out)
    assert out.count("[/nope] [bold]x[/bold] :smile:") == 3


@given(st.text())
def test_plain_text_holds_no_control_character_and_loses_none_else(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    assert all(a == b or unicodedata.category(a) in {"Cc", "Cf"} for a, b in zip(text, shown, strict=True))
    assert not any(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in shown)
    assert plain(shown) == shown


def test_errors_are_printed_plain(capsys: pytest.CaptureFixture[str]) -> None:
    from kvload.cli.main import run

    assert run(["re\x1b[2Jplay"]) == 2
    assert "\x1b" not in capsys.readouterr().err
