"""H2O as it is often measured: heavy hitters of the prompt, chosen once."""

from dataclasses import dataclass

from kvload.servers.plugins.vllm.eviction.policy import N, Policy, gone

EVERY_QUERY = 2**30
"""More queries than a prompt has."""


@dataclass(frozen=True)
class H2OPrompt(Policy):
    """H2O (Zhang et al. 2023, arXiv 2306.14048) reduced to prompts, as KVCache-Factory has it.

    A prompt token's score is the attention that all queries of the prompt pay to it, not smoothed. At the prompt's end
    whole blocks go, so that ``budget`` to ``budget + block - 1`` tokens stay; nothing is dropped while decoding.

    Attributes:
        budget: prompt tokens kept per KV head.
        recent: newest of them, kept whatever their score.
    """

    budget: int = 512
    recent: int = 256

    def first_kept(self, computed: N, prompt: N) -> N:
        """Nothing before the prompt is read; then all whole blocks beyond the budget, once."""
        return (computed >= prompt) * gone((prompt - self.budget) // self.block)

    @property
    def judges(self) -> int | None:
        """All queries of the prompt."""
        return EVERY_QUERY

    @property
    def most_kept(self) -> int:
        """The budget, and what is left of a block."""
        return self.budget + self.block - 1

    @property
    def newest(self) -> int:
        """The recent ones."""
        return self.recent

    def problem(self) -> str | None:
        """The recent ones must fit."""
        return None if 1 <= self.recent < self.budget else "recent must be at least 1 and smaller than budget"
