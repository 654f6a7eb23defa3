"""StreamingLLM: attention sinks and a sliding window."""

from dataclasses import dataclass

from kvload.servers.embedded.compression.uncompressed import Uncompressed


@dataclass(frozen=True)
class StreamingLLM(Uncompressed):
    """Xiao et al. 2023, arXiv 2309.17453: the first ``start`` tokens and the newest ``recent`` ones.

    A query at position ``p`` sees the positions below ``start`` and those above ``p - recent``, in the prompt as well
    as while decoding, so the result does not depend on how the prompt is cut. Keys keep the rotation of their logical
    position; the paper's code rotates by the place inside the cache.

    Attributes:
        start: first tokens kept.
        recent: newest tokens kept, the query's own included.
    """

    start: int = 4
    recent: int = 512

    @property
    def sink_tokens(self) -> int:
        return self.start

    @property
    def recent_tokens(self) -> int | None:
        return self.recent
