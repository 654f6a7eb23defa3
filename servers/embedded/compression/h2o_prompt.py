"""H2O as it is often measured: heavy hitters of the prompt, chosen once."""

from dataclasses import dataclass

import torch

from kvload.servers.embedded.compression.base import ScoredMethod

EVERY_QUERY = 2**30
"""More queries than a prompt has."""


@dataclass(frozen=True)
class H2OPrompt(ScoredMethod):
    """H2O (Zhang et al. 2023, arXiv 2306.14048) reduced to prompts, as KVCache-Factory has it.

    A prompt token's score is the attention that all queries of the prompt pay to it, summed over the query heads that
    share its key. Nothing is dropped while decoding.

    Attributes:
        budget: prompt tokens kept per head.
        recent: newest of them, kept whatever their score.
    """

    budget: int = 512
    recent: int = 256

    @property
    def kept_tokens(self) -> int:
        return self.budget

    @property
    def newest_tokens(self) -> int:
        return self.recent

    @property
    def judging_queries(self) -> int | None:
        return EVERY_QUERY

    @property
    def evicts_while_decoding(self) -> bool:
        return False

    def smoothed(self, scores: torch.Tensor) -> torch.Tensor:
        return scores
