"""What a method of eviction did since its engine started, told in the engine's log: the proof that it does something.

Two sides count. The scheduler counts what it freed; the kernels count, on the device, what they compacted. Each line is
``kvload eviction: {...}``, read by :mod:`kvload.servers.verification.eviction`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LOG_EVERY_S = 0.5
"""No line more often."""


class SchedulerCounts:
    """What the scheduler freed of running requests since its start, told from the first.

    Args:
        method: with its options.
        log: takes a line.
    """

    def __init__(self, method: str, log: Callable[[str], None]) -> None:
        self._method, self._log = method, log
        self._seen: set[Hashable] = set()
        self._requests = self._blocks = self._kept = 0
        self._told = (-1, 0.0)
        self.tell()

    def add(self, request: Hashable, blocks: int, kept_tokens: int) -> None:
        """Blocks of a request were freed while it runs.

        Args:
            kept_tokens: room of the blocks it still holds.
        """
        self._blocks += blocks
        if request not in self._seen:
            self._seen.add(request)
            self._requests += 1
            self._kept += kept_tokens

    def forget(self, request: Hashable) -> None:
        """A request holds nothing any more."""
        self._seen.discard(request)

    def tell(self) -> None:
        """Log what is new, no more than twice a second."""
        blocks, when = self._told
        now = time.monotonic()
        if self._blocks == blocks or now - when < LOG_EVERY_S:
            return
        self._told = self._blocks, now
        figures = {
            "method": self._method,
            "requests": self._requests,
            "freed_blocks": self._blocks,
            "kept_tokens": round(self._kept / max(1, self._requests), 1),
        }
        self._log(f"kvload eviction: {json.dumps(figures)}")


class WorkerCounts:
    """What the compaction kernels did, counted by themselves on the device.

    Args:
        method: with its options.
        times: programs that count each compaction of a request: layers times heads.
        device: where they run.
        log: takes a line.
    """

    def __init__(self, method: str, times: int, device: torch.device, log: Callable[[str], None]) -> None:
        import torch

        self._method, self._times, self._log = method, times, log
        self.on_device = torch.zeros(3, dtype=torch.int64, device=device)
        self._host = torch.zeros(3, dtype=torch.int64, device="cpu", pin_memory=self.on_device.is_cuda)
        self._asked = 0.0
        self._last = 0.0

    def tell(self) -> None:
        """Log what had been counted when this was last called, no more than twice a second; waits for nothing."""
        now = time.monotonic()
        if now - self._asked < LOG_EVERY_S:
            return
        compactions, kept, moved = (count / self._times for count in self._host.tolist())
        if compactions > self._last:
            self._last = compactions
            figures = {
                "method": self._method,
                "compactions": int(compactions),
                "kept_slots": round(kept / compactions, 1),
                "moved_slots": round(moved / compactions, 1),
            }
            self._log(f"kvload eviction: {json.dumps(figures)}")
        self._asked = now
        self._host.copy_(self.on_device, non_blocking=True)
