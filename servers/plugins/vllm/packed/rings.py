"""The newest tokens of every running request in full precision: a ring for each of vLLM's request slots.

A slot is a request's for as long as it runs; one more takes what a graph's padding rows write. Rings are allocated
with the model, so that vLLM's profile of memory counts them. Where the pool's size is given in bytes, they are taken
off it (:func:`kvload.servers.plugins.vllm.packed.wraps.rings_are_counted`): the method's bytes are pages and rings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kvload.servers.kernels.formats import RING_TOKENS, PageFormat

if TYPE_CHECKING:
    import torch  # kvload's own commands read the table of methods where no torch is


class RingStarts:
    """From which position on each slot's ring holds its request's tokens: after a prefix hit, from the hit on.

    Written by the runner when a request enters a slot, read by the attention's builder.
    """

    positions: dict[int, int]

    def __init__(self) -> None:
        self.positions = {}
        self.changed = True

    def enter(self, slot: int, computed_tokens: int) -> None:
        """A request takes a slot with so many tokens already in pages."""
        if self.positions.get(slot) != computed_tokens:
            self.positions[slot] = computed_tokens
            self.changed = True

    def copy_to(self, target: torch.Tensor) -> None:
        """Bring ``target (slots,)`` int32 on the device up to date."""
        if not self.changed:
            return
        host = np.zeros(len(target), dtype=np.int32)
        for slot, position in self.positions.items():
            host[slot] = position
        import torch

        found = torch.from_numpy(host)
        target.copy_(found.pin_memory() if target.is_cuda else found, non_blocking=True)
        self.changed = False


STARTS = RingStarts()
"""This process's."""


def new_rings(config: Any, fmt: PageFormat, kv_heads: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One layer's rings, ``(slots + 1, kv_heads, 2, RING_TOKENS, head_size)``."""
    import torch

    slots = config.scheduler_config.max_num_seqs + 1
    return torch.zeros(slots, kv_heads, 2, RING_TOKENS, fmt.head_size, dtype=dtype, device=device)
