"""To one server after the other."""

from collections.abc import Sequence

from kvload.servers.router.policies.base import Policy, Question, Settings
from kvload.servers.router.upstream import Upstream


class RoundRobinPolicy(Policy):
    """In turn, whatever is asked."""

    name = "round-robin"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._next = -1

    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """The place of the next server."""
        del question
        self._next = (self._next + 1) % len(servers)
        return self._next
