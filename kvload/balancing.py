"""Which of several equal servers a request goes to: the policies that replays and simulations have.

================ ====================================================================================================
``round-robin``  the next one, whatever it has to do
``least-loaded`` the one with the fewest requests under way; the first of these
``sticky``       all turns of a session to the server of its first one, sessions in turn; a request without a session
                 is one of its own
================ ====================================================================================================
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, get_args

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

    def choose(self, session: Hashable | None, under_way: Callable[[], Sequence[int]]) -> int:
        """The position of the next request's server.

        Args:
            session: the conversation it belongs to.
            under_way: how many requests each server has; asked where the policy wants to know.
        """
        if self.policy == "least-loaded":
            loads = under_way()
            return min(range(self._servers), key=lambda place: (loads[place], place))
        if self.policy == "sticky":
            if session is None:
                self._alone += 1
                session = ("alone", self._alone)
            return self._sessions.setdefault(session, len(self._sessions) % self._servers)
        place = self._asked % self._servers
        self._asked += 1
        return place
