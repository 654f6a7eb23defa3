"""What the kernels over packed pages are called with: the heads of a layer, and a step's sequences and their pages."""

from dataclasses import dataclass

import torch
import triton

from kvload.servers.kernels.formats import PageFormat

NATIVE = not triton.knobs.runtime.interpret
"""Whether kernels are compiled; under ``TRITON_INTERPRET=1`` they are interpreted on the CPU."""

MOST_COLUMNS = 16
"""Most query tokens times query heads of a KV head that one program serves."""


@dataclass(frozen=True)
class Heads:
    """The attention of one layer on this device.

    Attributes:
        query_heads, kv_heads: of this device; the first is a multiple of the second.
        head_size: channels of a head.
        dtype: of queries, keys and values: float16 or bfloat16.
        scaling: factor on the scores.
    """

    query_heads: int
    kv_heads: int
    head_size: int
    dtype: torch.dtype
    scaling: float

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.query_heads // self.kv_heads


def refusals(fmt: PageFormat, heads: Heads, query_tokens: int = 1) -> list[str]:
    """Why the kernels do not serve this shape; empty where they do."""
    found = []
    if heads.dtype not in (torch.float16, torch.bfloat16) and NATIVE:
        found.append(f"with {heads.dtype} (float16 or bfloat16)")
    if heads.head_size != fmt.head_size or heads.head_size > 128:
        found.append(f"with head size {heads.head_size} (at most 128)")
    if heads.query_heads % heads.kv_heads or heads.group * query_tokens > MOST_COLUMNS:
        found.append(
            f"with {heads.query_heads} query heads over {heads.kv_heads} KV heads and {query_tokens} query tokens "
            f"(at most {MOST_COLUMNS} a KV head)"
        )
    return found


@dataclass
class DecodePlan:
    """One step's split of work, made by ``PackedKernels.plan`` and read by every layer.

    The tensors stay the same from step to step, so that a graph may read them.
    """

    packed: torch.Tensor
    ends: torch.Tensor
    owners: torch.Tensor
    partials: torch.Tensor
    logs: torch.Tensor


@dataclass(frozen=True)
class Chunks:
    """The sequences of a step that bring several tokens.

    Attributes:
        table: ``(rows, blocks)`` int32.
        starts: position of each sequence's first new token, int32.
        lengths: new tokens included, int32.
        rows: place of the first new token among the step's, int32.
        slots: rings; None for formats without a window.
    """

    table: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor | None = None


@dataclass(frozen=True)
class Work:
    """Pages of several sequences, one item each; made by ``PackedKernels.work``, once a step for all layers.

    Attributes:
        rows: sequence of each item, int32 on the device.
        pages: which of its pages.
    """

    rows: torch.Tensor
    pages: torch.Tensor
