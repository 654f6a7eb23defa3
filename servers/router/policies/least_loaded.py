"""To the server with the fewest requests under way."""

from collections.abc import Sequence

from kvload.servers.router.policies.base import Policy, Question
from kvload.servers.router.upstream import Upstream


class LeastLoadedPolicy(Policy):
    """Counts what the router itself has sent; the first of several with as few."""

    name = "least-loaded"

    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """The place of the server with the least to do among those that are well."""
        del question
        return min(range(len(servers)), key=lambda place: (not servers[place].healthy, servers[place].in_flight))
