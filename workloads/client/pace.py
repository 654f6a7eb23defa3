"""How long answers may gather before they are read.

To be woken for every chunk is what costs a client most: a reader that sleeps on while more chunks come, and then reads
them all, saves the wake-ups, its own and the server's on the same machine. It loses nothing by it as long as the kernel
has stamped every arrival (:mod:`kvload.workloads.clock`) and it is back before a stream's next chunk: two chunks of one
stream in one read would share a stamp.
"""

LONGEST_NS = 1_000_000
LEAST_CHUNKS_PER_S = 2_000
"""Below this hardly two chunks would come in one nap."""

PARTS_OF_A_GAP = 8
"""A nap is at most this part of the mean time between two chunks of a stream."""

_WINDOW_NS = 50_000_000


def nap_ns(reads: int, streams: int, elapsed_ns: int) -> int:
    """The longest nap that pays and does no harm; 0 for none.

    Args:
        reads: how many there were in the last ``elapsed_ns`` nanoseconds.
        streams: how many streams they were from.
    """
    if reads * 1_000_000_000 < LEAST_CHUNKS_PER_S * elapsed_ns:
        return 0
    return min(LONGEST_NS, streams * elapsed_ns // reads // PARTS_OF_A_GAP)


class Pace:
    """Follows how chunks come in.

    Attributes:
        nap_ns: how long the reader may sleep now.
    """

    def __init__(self) -> None:
        self._reads = 0
        self._since_ns = 0
        self.nap_ns = 0

    def count(self, reads: int, streams: int, now_ns: int) -> None:
        """So many reads were made, of streams of which there are so many now."""
        self._reads += reads
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns >= _WINDOW_NS:
            self.nap_ns = nap_ns(self._reads, streams, elapsed_ns)
            self._reads = 0
            self._since_ns = now_ns
