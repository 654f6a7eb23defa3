"""Prompts over packed pages, whatever the engine: their context is dequantised, and attended to with the new tokens.

A prompt's tokens see those of the same step exactly and earlier ones as they are stored. Rows without context need no
scratch; others are taken together, as many at a time as the scratch holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from kvload.servers.kernels.triton.launch import PackedKernels
    from kvload.servers.kernels.triton.shapes import Chunks, Work

Counts = npt.NDArray[np.int64]


@dataclass
class Group:
    """Rows of :class:`Prompts` whose context fits into the scratch.

    Attributes:
        rows, tokens: which rows, and which of the step's tokens.
        held: pages of the sequences.
        queries, keys: running sums of new tokens and of lengths, int32 on the device.
        most_new, most_held: most new tokens, and most tokens, of a row.
        total: tokens of all rows.
    """

    rows: slice
    tokens: slice
    held: Work
    queries: torch.Tensor
    keys: torch.Tensor
    most_new: int
    most_held: int
    total: int


@dataclass
class Prompts:
    """The rows of a step that bring tokens of a prompt.

    Attributes:
        chunks: for the kernels.
        filled: pages that the rows fill; for methods with a window.
        starts: running sum of their new tokens, int32 on the device.
        most_new: most tokens of a row.
        groups: rows that are dequantised and attended together; empty where no row has context.
    """

    chunks: Chunks
    filled: Work | None
    starts: torch.Tensor
    most_new: int
    groups: list[Group]


@dataclass(frozen=True)
class Flash:
    """Causal attention of several sequences, aligned at their ends: an engine's own kernel.

    Attributes:
        call: with queries, keys, values, the output, running sums of queries and of keys, most queries, most keys.
    """

    call: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], None]


def on_device(numbers: npt.NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """Numbers of the host on a device, without waiting."""
    import torch

    found = torch.from_numpy(numbers)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


def plan(
    kernels: PackedKernels,
    table: torch.Tensor,
    starts: Counts,
    stops: Counts,
    slots: torch.Tensor | None,
    scratch_tokens: int,
) -> Prompts:
    """What a step's prompts need, once for all layers.

    Args:
        table: ``(rows, blocks)`` int32 pages of their sequences.
        starts, stops: first new position of each row, and the one behind its last.
        slots: of rings, for methods with a window.
        scratch_tokens: that the scratch holds.
    """
    from kvload.servers.kernels.triton.shapes import Chunks

    new = stops - starts
    firsts = np.concatenate([[0], np.cumsum(new)])
    numbers = np.zeros((4, len(new) + 1), dtype=np.int32)
    numbers[0, :-1], numbers[1, :-1], numbers[2, :-1], numbers[3] = starts, stops, firsts[:-1], firsts
    device = table.device
    given = on_device(numbers, device)
    chunks = Chunks(table, given[0, :-1], given[1, :-1], given[2, :-1], slots)
    filled = kernels.filled(list(zip(starts.tolist(), stops.tolist(), strict=True))) if kernels.fmt.window else None
    groups = _groups(kernels, new, stops, scratch_tokens, device) if starts.any() else []
    return Prompts(chunks, filled, given[3], int(new.max()), groups)


def _groups(kernels: PackedKernels, new: Counts, lengths: Counts, room: int, device: torch.device) -> list[Group]:
    found = []
    row = token = 0
    while row < len(new):
        stop, total = row, 0
        while stop < len(new) and total + lengths[stop] <= room:
            total += int(lengths[stop])
            stop += 1
        if stop == row:
            raise ValueError(f"a sequence of {lengths[row]} tokens does not fit a scratch of {room}")
        sums = np.zeros((2, stop - row + 1), dtype=np.int32)
        sums[0, 1:], sums[1, 1:] = np.cumsum(new[row:stop]), np.cumsum(lengths[row:stop])
        given = on_device(sums, device)
        tokens = int(sums[0, -1])
        found.append(
            Group(
                slice(row, stop),
                slice(token, token + tokens),
                kernels.held(lengths[row:stop].tolist()),
                given[0],
                given[1],
                int(new[row:stop].max()),
                int(lengths[row:stop].max()),
                total,
            )
        )
        row, token = stop, token + tokens
    return found


def attend(
    kernels: PackedKernels,
    prompts: Prompts,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pages: torch.Tensor,
    out: torch.Tensor,
    scratch: torch.Tensor,
    ring: torch.Tensor | None,
    ring_from: torch.Tensor | None,
    flash: Flash,
) -> None:
    """Attention of one layer's prompts, before their own tokens are stored.

    Args:
        query, key, value: ``(tokens, heads, head_size)`` of the step.
        scratch: ``(2, tokens, kv_heads, head_size)``.
        ring, ring_from: of methods with a window.
    """
    from kvload.servers.kernels.triton.shapes import Chunks

    if not prompts.groups:
        flash.call(query, key, value, out, prompts.starts, prompts.starts, prompts.most_new, prompts.most_new)
        return
    for group in prompts.groups:
        chunks = prompts.chunks
        part = Chunks(
            chunks.table[group.rows],
            chunks.starts[group.rows],
            chunks.lengths[group.rows],
            chunks.rows[group.rows],
            None if chunks.slots is None else chunks.slots[group.rows],
        )
        key_out, value_out = scratch[:, : group.total]
        kernels.dequantise(key, value, pages, part, group.held, group.keys, key_out, value_out, ring, ring_from)
        flash.call(
            query[group.tokens],
            key_out,
            value_out,
            out[group.tokens],
            group.queries,
            group.keys,
            group.most_new,
            group.most_held,
        )
