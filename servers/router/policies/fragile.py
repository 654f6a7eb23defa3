"""The most fragile requests to the full cache: those whose value lies in the top share of the requests of the fit."""

from collections.abc import Sequence

from kvload.servers.router.policies.base import Policy, Question
from kvload.servers.router.upstream import Upstream


class FragilePolicy(Policy):
    """By what the router foretells of the request, against the requests that it was fitted on."""

    name = "fragile"
    needs_router = True
    most_servers = 2

    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """0 for a fragile request, 1 for any other."""
        del servers
        return 0 if self.rank(question) >= 1 - self.settings.share else 1

    def rank(self, question: Question) -> float:
        """Where the request lies among those of the fit, 0 to 1; the most fragile highest."""
        return self.rank_of(self.value(question), question)

    def rank_of(self, value: float, question: Question) -> float:
        """Where a value lies among those of the fit, ties decided by the request."""
        router = self.settings.router
        draw = question.draw(self.settings.seed)
        # the highest rank is 1, and a share of 0 sends none
        return min(draw if router is None else router.rank(value, draw), 1 - 1e-9)

    def value(self, question: Question) -> float:
        """How much it needs the full cache."""
        settings = self.settings
        if settings.router is None:
            return 0.0
        return settings.router.value(settings.target, question.task(settings.recogniser), question.row)
