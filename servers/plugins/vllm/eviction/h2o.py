"""H2O: the newest tokens and the heavy hitters."""

from dataclasses import dataclass

from kvload.servers.plugins.vllm.eviction.policy import N, Policy, gone


@dataclass(frozen=True)
class H2O(Policy):
    """Zhang et al. 2023, arXiv 2306.14048: scores accumulate over the prompt and over every generated token.

    The paper drops a token with each one generated. Here as many go at once as fill a block, whenever a block's worth
    of tokens has come: ``budget`` to ``budget + block - 1`` tokens stay.

    Attributes:
        budget: tokens kept per KV head.
        recent: newest of them, kept whatever their score.
    """

    budget: int = 512
    recent: int = 256

    def first_kept(self, computed: N, prompt: N) -> N:
        """Nothing before the prompt is read; then all whole blocks beyond the budget."""
        return (computed >= prompt) * gone((computed - self.budget) // self.block)

    @property
    def judges(self) -> int | None:
        """All queries."""
        return None

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
