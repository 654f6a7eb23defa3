"""To the server with the fewest requests under way."""

from collections.abc import Sequence

from kvload.balancing import LeastLoaded
from kvload.servers.router.policies.base import Policy, Question, Settings
from kvload.servers.router.upstream import Upstream


class LeastLoadedPolicy(Policy):
    """Counts what the router itself has sent; of several with as few the one that was chosen longest ago."""

    name = "least-loaded"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._balancer = LeastLoaded(settings.servers)

    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """The place of the server with the least to do among those that are well."""
        del question
        return self._balancer.choose([(not server.healthy, server.in_flight) for server in servers])
