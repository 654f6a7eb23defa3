"""A fixed share of the traffic to the full cache, the most fragile of what came lately, whatever the traffic is."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence

from kvload.servers.router.policies.base import Question, Settings
from kvload.servers.router.policies.fragile import FragilePolicy
from kvload.servers.router.upstream import Upstream

WINDOW = 1000
FEWEST = 50
"""Until so many requests came, they are held against those of the fit."""


class SharePolicy(FragilePolicy):
    """By what the router foretells, against the last :data:`WINDOW` requests."""

    name = "share"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._recent: deque[float] = deque()
        self._ordered: list[float] = []

    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """0 for a request among the most fragile share, 1 for any other."""
        del servers
        value = self.value(question)
        if len(self._recent) < FEWEST:
            rank = self.rank_of(value, question)
        else:
            low, high = bisect_left(self._ordered, value), bisect_right(self._ordered, value)
            rank = (low + question.draw(self.settings.seed) * (high - low)) / len(self._ordered)
        self._remember(value)
        return 0 if min(rank, 1 - 1e-9) >= 1 - self.settings.share else 1

    def _remember(self, value: float) -> None:
        self._recent.append(value)
        insort(self._ordered, value)
        if len(self._recent) > WINDOW:
            oldest = self._recent.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]
