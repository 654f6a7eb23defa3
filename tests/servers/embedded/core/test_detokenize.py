"""Text as it comes: against decoding everything at once, and against searching the whole text."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kvload.servers.embedded.core.detokenize import Detokenizer, StopStrings, TextOutput


class ByteTokenizer:
    """A token is a byte: characters beyond ASCII take several."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


@given(prompt=st.text(max_size=8), text=st.text(max_size=40))
def test_pieces_make_the_text_and_hold_no_partial_characters(prompt: str, text: str) -> None:
    output = Detokenizer(ByteTokenizer(), list(prompt.encode()))  # type: ignore[arg-type]
    pieces = [output.push(token) for token in text.encode()]
    assert "".join(pieces) + output.flush() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or "\N{REPLACEMENT CHARACTER}" in text


@given(tokens=st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_characters_are_neither_kept_back_for_ever_nor_lost(tokens: list[int]) -> None:
    output = Detokenizer(ByteTokenizer(), [])  # type: ignore[arg-type]
    shown = ""
    for position, token in enumerate(tokens):
        shown += output.push(token)
        behind = bytes(tokens[: position + 1]).decode("utf-8", "replace")
        assert len(behind) - len(shown) <= 6
    shown += output.flush()
    assert [c for c in shown if c.isascii()] == [chr(token) for token in tokens if token < 128]


STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


@given(pieces=st.lists(st.text("abc\n", max_size=3), max_size=20), stops=STOPS)
def test_stop_strings_across_pieces(pieces: list[str], stops: list[str]) -> None:
    search = StopStrings(stops)
    shown, text = "", ""
    for piece in pieces:
        text += piece
        fresh, stopped = search.push(piece)
        shown += fresh
        found = [text.find(stop) for stop in stops if stop in text]
        assert stopped == bool(found)
        if stopped:
            assert shown == text[: min(found)]
            return
        assert text.startswith(shown)
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
    assert shown + search.flush() == text


def test_a_token_that_ends_the_answer_is_not_shown_but_what_waited_is() -> None:
    output = TextOutput(ByteTokenizer(), [], ["xy"])  # type: ignore[arg-type]
    assert output.push(ord("a")) == ("a", False)
    assert output.push(ord("x")) == ("", False)
    assert output.push(0, visible=False) == ("", False)
    assert output.flush() == ("x", False)


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    output = TextOutput(ByteTokenizer(), [], ["b"])  # type: ignore[arg-type]
    assert output.push(ord("b"), stops_count=False) == ("b", False)
    assert output.push(ord("b")) == ("", True)
