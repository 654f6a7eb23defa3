"""SnapKV: the prompt tokens that the end of the prompt attends to."""

from dataclasses import dataclass

from kvload.servers.plugins.vllm.eviction.policy import N, Policy, gone


@dataclass(frozen=True)
class SnapKV(Policy):
    """Li et al. 2024, arXiv 2404.14469: scores of the prompt's last ``window`` queries, smoothed over positions.

    Whole blocks go, so that ``budget`` to ``budget + block - 1`` prompt tokens stay. Nothing is dropped while decoding.

    Attributes:
        budget: prompt tokens kept per KV head, the window included.
        window: last prompt tokens, which judge and stay.
        kernel: width of the smoothing, odd.
    """

    budget: int = 1024
    window: int = 32
    kernel: int = 5

    def first_kept(self, computed: N, prompt: N) -> N:
        """Nothing before the prompt is read; then all whole blocks beyond the budget, once."""
        return (computed >= prompt) * gone((prompt - self.budget) // self.block)

    @property
    def judges(self) -> int | None:
        """The window."""
        return self.window

    @property
    def most_kept(self) -> int:
        """The budget, and what is left of a block."""
        return self.budget + self.block - 1

    @property
    def newest(self) -> int:
        """The window."""
        return self.window

    @property
    def smoothing(self) -> int:
        """The kernel."""
        return self.kernel

    def problem(self) -> str | None:
        """The window must fit, and a mean over an even width has no middle."""
        if not 1 <= self.window < self.budget:
            return "window must be at least 1 and smaller than budget"
        if self.kernel < 1 or self.kernel % 2 == 0:
            return "kernel must be odd"
        return None
