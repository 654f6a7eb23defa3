"""Cutting a step into pieces whose scratch memory is bounded."""

import numpy as np

from kvload.servers.embedded.account.tables import Ints


def batches(sizes: Ints, limit: int) -> list[Ints]:
    """Group sequences of similar size, so that little of a padded batch is padding.

    Args:
        sizes: blocks each sequence reads.
        limit: most blocks of one padded batch; a sequence that is larger stands alone.

    Returns:
        index arrays into ``sizes``, each sorted by falling size.
    """
    order = np.argsort(-sizes, kind="stable")
    found = []
    start = 0
    while start < len(order):
        largest = max(1, int(sizes[order[start]]))
        stop = min(len(order), start + max(1, limit // largest))
        # A member may be half padding before a batch of its own is cheaper.
        small = np.flatnonzero(2 * sizes[order[start:stop]] < largest)
        if len(small) and small[0] >= 4:
            stop = start + int(small[0])
        found.append(order[start:stop])
        start = stop
    return found
