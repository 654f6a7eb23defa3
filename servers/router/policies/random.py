"""A share of the requests to the full cache, drawn."""

from collections.abc import Sequence

from kvload.servers.router.policies.base import Policy, Question
from kvload.servers.router.upstream import Upstream


class RandomPolicy(Policy):
    """The same request is always drawn alike, so that repeats of a trace are routed alike."""

    name = "random"
    most_servers = 2

    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """0 with the share's probability, else 1."""
        del servers
        return 0 if question.draw(self.settings.seed) < self.settings.share else 1
