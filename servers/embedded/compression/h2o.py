"""H2O: the newest tokens and the heavy hitters."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import ScoredMethod


@dataclass(frozen=True)
class H2O(ScoredMethod):
    """Zhang et al. 2023, arXiv 2306.14048: scores accumulate over the prompt and over every generated token.

    A new token attends to all ``budget`` kept ones and itself; then the lowest score among all but the newest
    ``recent`` is dropped. Scores of query heads that share a key are summed.

    Attributes:
        budget: tokens kept per head.
        recent: newest of them, kept whatever their score.
        every: how many go at once, when as many have come: ``budget`` to ``budget + every - 1`` stay. The paper's is 1;
            engines that free memory in blocks evict a block's worth.
    """

    budget: int = 512
    recent: int = 256
    every: int = 1

    @property
    def evicts_at_once(self) -> int:
        """``every``."""
        return self.every

    @property
    def kept_tokens(self) -> int:
        return self.budget

    @property
    def newest_tokens(self) -> int:
        return self.recent

    @property
    def judging_queries(self) -> int | None:
        return None

    @property
    def evicts_while_decoding(self) -> bool:
        return True

    def smoothed(self, scores: torch.Tensor) -> torch.Tensor:
        return scores
