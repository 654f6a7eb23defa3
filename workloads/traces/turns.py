"""Numbers the turns of sessions whose lines only name their session."""

from kvload.workloads.traces.reader import Cursor


class TurnCounter:
    """Counts lines per session, in the order they come."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def count(self, cursor: Cursor, session: object, name: str = "session_id") -> tuple[str | None, int | None]:
        """The line's session and its turn in it from 0; both None where it names no session.

        Raises:
            TraceError: the session is neither a text nor a whole number.
        """
        if session is None or session == "":
            return None, None
        if isinstance(session, bool) or not isinstance(session, str | int):
            raise cursor.wrong(name, session, "a session's name")
        key = str(session)
        turn = self._next.get(key, 0)
        self._next[key] = turn + 1
        return key, turn
