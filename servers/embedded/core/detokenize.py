"""Tokens to text while they come: no partial characters, no text of a stop string."""

from collections.abc import Sequence

from kvload.servers.embedded.core.tokenizer import Tokenizer

_CONTEXT = 5
_PATIENCE = 6
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text each new token adds.

    Decodes the newest tokens together with a few before them, since a token's text depends on its left neighbours
    (spaces, characters of several bytes). Text that ends in an incomplete character waits for the next token, but not
    for more than ``_PATIENCE`` tokens: a random model writes bytes that never become a character.

    Args:
        tokenizer: the model's.
        prompt: the tokens before the answer.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-_CONTEXT:])
        self._read = len(self._window)
        self._known = tokenizer.decode(self._window) if self._window else ""

    def push(self, token: int) -> str:
        """The text that is final with this token; empty while a character is incomplete."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        pending = len(self._window) - self._read
        if text.endswith(_REPLACEMENT) and pending < _PATIENCE:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is left at the end of the answer, incomplete characters as replacement characters."""
        if len(self._window) == self._read:
            return ""
        return self._emit(self._tokenizer.decode(self._window))

    def _emit(self, text: str) -> str:
        fresh = text[len(self._known) :]
        del self._window[: self._read]
        self._read = len(self._window)
        self._known = self._tokenizer.decode(self._window)
        return fresh


class StopStrings:
    """Holds back text that may be the beginning of a stop string.

    Args:
        stops: the strings; none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string is complete (the text then ends before it)."""
        if not self._stops:
            return text, False
        text = self._held + text
        self._held = ""
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size], False
        return text, False

    def flush(self) -> str:
        """Text held back when the answer ended otherwise."""
        held, self._held = self._held, ""
        return held


class TextOutput:
    """An answer's text: detokenised, cut at stop strings."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stops)

    def push(self, token: int, *, visible: bool = True, stops_count: bool = True) -> tuple[str, bool]:
        """Add a token.

        Args:
            token: the new token.
            visible: False for a token that ended the answer, whose text is not shown.
            stops_count: False while fewer than ``min_tokens`` are generated: text is shown, no stop string is sought.

        Returns:
            the text that became final, and whether a stop string ended the answer.
        """
        text = self._detokenizer.push(token) if visible else self._detokenizer.flush()
        return self._stops.push(text) if stops_count else (text, False)

    def flush(self) -> tuple[str, bool]:
        """The rest of the text where the answer ended otherwise, and whether that completed a stop string."""
        shown, stopped = self._stops.push(self._detokenizer.flush())
        return (shown, True) if stopped else (shown + self._stops.flush(), False)
