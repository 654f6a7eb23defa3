"""Which of several equal servers a request goes to: the policies that replays and simulations have.

================ ====================================================================================================
``round-robin``  the next one, whatever it has to do
``least-loaded`` the one with the fewest requests under way; of several the one whose last request is longest ago
``sticky``       all turns of a session to the server of its first one, sessions in turn; a request without a session
                 is one of its own
================ ====================================================================================================
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, get_args

from kvload.errors import UsageError

Policy = Literal["round-robin", "least-loaded", "sticky"]


def policy_of(text: str, *, where: str = "--policy") -> Policy:
    """A policy by its name.

    Raises:
        UsageError: there is none of that name.
    """
    for policy in get_args(Policy):
        if policy == text:
            found: Policy = policy
            return found
    raise UsageError(f"no policy '{text}'", where=where, hint=f"known: {', '.join(get_args(Policy))}")


class LeastLoaded:
    """Chooses the server with the least to do; where several have as little, the one that was chosen longest ago.

    So servers that are idle take turns: were it always the first, one of two would have nearly all of a light load, its
    prefix cache and its GPU warm, and the other's metrics would say nothing.

    Args:
        servers: how many there are.
    """

    def __init__(self, servers: int) -> None:
        self._last = list(range(-servers, 0))
        self._asked = 0

    def choose(self, loads: Sequence[Any]) -> int:
        """The position of the next request's server.

        Args:
            loads: what each server has to do, in anything that can be ordered.
        """
        place = min(range(len(self._last)), key=lambda place: (loads[place], self._last[place]))
        self._last[place] = self._asked
        self._asked += 1
        return place


class Balancer:
    """Chooses a server for each of the requests it is asked about, in their order.

    Args:
        policy: by what.
        servers: how many there are.
    """

    def __init__(self, policy: Policy, servers: int) -> None:
        self.policy = policy
        self._servers = servers
        self._asked = 0
        self._sessions: dict[Hashable, int] = {}
        self._alone = 0
        self._least_loaded = LeastLoaded(servers)

    def choose(self, session: Hashable | None, under_way: Callable[[], Sequence[int]]) -> int:
        """The position of the next request's server.

        Args:
            session: the conversation it belongs to.
            under_way: how many requests each server has; asked where the policy wants to know.
        """
        if self.policy == "least-loaded":
            return self._least_loaded.choose(under_way())
        if self.policy == "sticky":
            if session is None:
                self._alone += 1
                session = ("alone", self._alone)
            return self._sessions.setdefault(session, len(self._sessions) % self._servers)
        place = self._asked % self._servers
        self._asked += 1
        return place
