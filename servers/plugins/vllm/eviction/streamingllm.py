"""StreamingLLM: attention sinks and a sliding window."""

from dataclasses import dataclass

from kvload.servers.plugins.vllm.eviction.policy import N, Policy, gone


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Xiao et al. 2023, arXiv 2309.17453: the first ``start`` tokens and the newest ``recent`` ones.

    A query sees the same tokens wherever a prompt is cut into chunks: the window is applied inside the prompt as well
    as while decoding. Keys keep the rotation of their position in the text.

    Attributes:
        start: first tokens kept.
        recent: newest tokens kept, the query's own included.
    """

    start: int = 4
    recent: int = 512

    def first_kept(self, computed: N, prompt: N) -> N:
        """Blocks that no later query's window reaches."""
        return gone((computed - self.recent + 1) // self.block)

    @property
    def sight(self) -> int | None:
        """The recent ones."""
        return self.recent

    def problem(self) -> str | None:
        """A window of no token has no query in it."""
        if self.start < 0 or self.recent < 1:
            return "start must be at least 0 and recent at least 1"
        return None
