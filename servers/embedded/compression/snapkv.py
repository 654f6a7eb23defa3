"""SnapKV: the prompt tokens that the end of the prompt attends to."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from kvload.servers.embedded.compression.base import ScoredMethod


@dataclass(frozen=True)
class SnapKV(ScoredMethod):
    """Li et al. 2024, arXiv 2404.14469: scores of the prompt's last ``window`` queries, smoothed over positions.

    Smoothing is a mean over ``kernel`` neighbours with zeros beyond the ends. Query heads that share a key are averaged
    (a sum, which ranks the same). Nothing is dropped while decoding, nor from prompts within the budget.

    Attributes:
        budget: prompt tokens kept per head, the window included.
        window: last prompt tokens, which judge and stay.
        kernel: width of the smoothing.
    """

    budget: int = 1024
    window: int = 32
    kernel: int = 5

    @property
    def kept_tokens(self) -> int:
        return self.budget

    @property
    def newest_tokens(self) -> int:
        return self.window

    @property
    def judging_queries(self) -> int | None:
        return self.window

    @property
    def evicts_while_decoding(self) -> bool:
        return False

    def smoothed(self, scores: torch.Tensor) -> torch.Tensor:
        """Mean over neighbours."""
        flat = scores.reshape(1, -1, scores.shape[-1])
        return functional.avg_pool1d(flat, self.kernel, stride=1, padding=self.kernel // 2).view(scores.shape)
