"""Which server answers a request: the policy's choice, a conversation's own server, or one that is well."""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvload.prompt_features import asked
from kvload.records import prompt_digest
from kvload.servers.router.policies.base import Policy, Question
from kvload.servers.router.upstream import Upstream
from kvload.untrusted import DECODE_ERRORS

TASK_HEADER = "x-kvload-task"
"""With it a client may name a request's task."""

SESSION_HEADER = "x-session-id"
"""With it a client may say which conversation a request is of; chats are known by how they begin."""

MOST_SESSIONS = 100_000
MOST_HEADER = 200


@dataclass
class Counters:
    """What the router decided so far; ``deciding_s`` is the time that took."""

    decided: int = 0
    sticky: int = 0
    elsewhere: int = 0
    deciding_s: float = 0.0
    longest_s: float = 0.0


@dataclass
class Decider:
    """Chooses servers and remembers where conversations are.

    Attributes:
        sticks: later turns go to the server of the first, whose cache holds what was said.
    """

    policy: Policy
    servers: Sequence[Upstream]
    sticks: bool = True
    counters: Counters = field(default_factory=Counters)
    _sessions: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def decide(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The place of the server that is to answer a request.

        Args:
            body: as the client sent it; what is no request is left to a server to refuse.
            headers: the client's, by lower-case names.
        """
        began = time.perf_counter()
        request = _parsed(body)
        session, turn = _session(request, headers)
        known = self._sessions.get(session) if self.sticks and (turn or SESSION_HEADER in headers) else None
        if known is not None:
            self.counters.sticky += 1
            place = known
        else:
            task = headers.get(TASK_HEADER)
            question = Question(asked(request), None if task is None else task[:MOST_HEADER], session)
            place = self.policy.choose(question, self.servers)
        if not self.servers[place].healthy:
            place = self.other(place)
        self._remember(session, place)
        took = time.perf_counter() - began
        self.counters.decided += 1
        self.counters.deciding_s += took
        self.counters.longest_s = max(self.counters.longest_s, took)
        return place

    def other(self, place: int) -> int:
        """A server that is well in the place of one that is not: the one with the least to do; the same if none is."""
        well = [other for other, server in enumerate(self.servers) if server.healthy and other != place]
        if not well:
            return place
        self.counters.elsewhere += 1
        return min(well, key=lambda other: self.servers[other].in_flight)

    def _remember(self, session: str, place: int) -> None:
        self._sessions[session] = place
        self._sessions.move_to_end(session)
        if len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except DECODE_ERRORS:
        return {}
    return found if isinstance(found, dict) else {}


def _session(request: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str, int]:
    """A conversation's key, and how many answers it has already.

    All turns of a chat begin with the same messages, up to the model's first answer.
    """
    named = headers.get(SESSION_HEADER)
    messages = request.get("messages")
    if not isinstance(messages, list):
        prompt = request.get("prompt")
        key = prompt_digest(prompt) if isinstance(prompt, str | list) else ""
        return (named[:MOST_HEADER], 0) if named is not None else (key, 0)
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    turn = roles.count("assistant")
    return (named[:MOST_HEADER] if named is not None else prompt_digest(messages[:first])), turn
