"""An independent KV cache for tests: contiguous tensors, plain attention one sequence at a time, pages only counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.kernels.attention import AttentionExtras


@dataclass(eq=False)
class ReferenceSequence:
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int = 0
    pages: int = 0
    closed: bool = False

    @property
    def allocated_bytes(self) -> int:
        return self.pages


@dataclass
class ReferenceCache:
    """Counts pages of ``page`` tokens out of ``total`` of them; a page is one byte of its books."""

    geometry: CacheGeometry
    total: int
    page: int = 4
    used: int = 0
    steps: list[list[int]] = field(default_factory=list)
    fault: Exception | None = None

    @property
    def total_bytes(self) -> int:
        return self.total

    @property
    def allocated_bytes(self) -> int:
        return self.used

    @property
    def kernels_name(self) -> str:
        return "reference"

    @property
    def page_bytes(self) -> int:
        return 1

    @property
    def page_heads(self) -> int:
        return self.geometry.kv_heads

    @property
    def pool_tokens(self) -> int:
        return self.total * self.page

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page)

    def open(self) -> ReferenceSequence:
        g = self.geometry
        empty = [torch.empty(0, g.kv_heads, g.head_dim, dtype=g.dtype) for _ in range(g.layers)]
        return ReferenceSequence(list(empty), list(empty))

    def close(self, sequence: ReferenceSequence) -> None:
        self.used -= sequence.pages
        sequence.pages = 0
        sequence.closed = True

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        return self._pages(prompt_tokens + max_new_tokens) <= self.total

    def admits(self, prompt_tokens: int) -> bool:
        return self._pages(prompt_tokens + 1) <= self.total - self.used

    def reserve(self, sequence: ReferenceSequence, new_tokens: int) -> bool:
        assert not sequence.closed
        more = max(0, self._pages(sequence.length + new_tokens) - sequence.pages)
        if self.used + more > self.total:
            return False
        self.used += more
        sequence.pages += more
        return True

    def plan(self, entries: Sequence[StepEntry]) -> list[StepEntry]:
        for entry in entries:
            assert not entry.sequence.closed
            assert entry.sequence.length + entry.new_tokens <= entry.sequence.pages * self.page
        self.steps.append([entry.new_tokens for entry in entries])
        return list(entries)

    def attend(
        self,
        layer: int,
        plan: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        outputs = []
        first = 0
        for entry in plan:
            rows = slice(first, first + entry.new_tokens)
            first += entry.new_tokens
            sequence = entry.sequence
            sequence.keys[layer] = torch.cat((sequence.keys[layer], key[rows]))
            sequence.values[layer] = torch.cat((sequence.values[layer], value[rows]))
            outputs.append(plain_attention(query[rows], sequence.keys[layer], sequence.values[layer], extras))
        return torch.cat(outputs)

    def commit(self, plan: Any) -> None:
        for entry in plan:
            entry.sequence.length += entry.new_tokens
            assert all(len(keys) == entry.sequence.length for keys in entry.sequence.keys)


def plain_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, extras: AttentionExtras
) -> torch.Tensor:
    """Attention of the newest ``len(query)`` positions over all keys, by its definition."""
    new, query_heads, _ = query.shape
    length, kv_heads, _ = keys.shape
    group = query_heads // kv_heads
    k = keys.repeat_interleave(group, dim=1).transpose(0, 1)
    v = values.repeat_interleave(group, dim=1).transpose(0, 1)
    scores = query.transpose(0, 1) @ k.transpose(1, 2) * extras.scaling
    if extras.softcap is not None:
        scores = torch.tanh(scores / extras.softcap) * extras.softcap
    behind = torch.arange(length - new, length).unsqueeze(1) - torch.arange(length)
    hidden = behind < 0
    if extras.sliding_window is not None:
        hidden |= behind >= extras.sliding_window
    scores = scores.masked_fill(hidden, float("-inf"))
    if extras.sinks is not None:
        scores = torch.cat((scores, extras.sinks.view(-1, 1, 1).expand(-1, new, 1)), dim=-1)
    return (scores.softmax(-1)[..., :length] @ v).transpose(0, 1)
