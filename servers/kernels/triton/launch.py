"""The kernels as calls on tensors, with their launch settings.

Shapes: ``pages (pages, kv_heads, run_bytes)`` uint8; ``table (rows, blocks)`` int32; ``lengths (rows,)`` int32, new
tokens included; ``ring (slots, kv_heads, 2, RING_TOKENS, head_size)`` and ``slots (rows,)`` int32 for formats with a
window; ``query``, ``key``, ``value`` ``(tokens, heads, head_size)``, heads contiguous.
"""

import math
from collections.abc import Sequence

import torch
import triton

from kvload.servers.kernels.formats import PAGE_TOKENS, RING_TOKENS, PageFormat
from kvload.servers.kernels.quantise import random_hadamard
from kvload.servers.kernels.triton import decode, dequantise, rings, store
from kvload.servers.kernels.triton.shapes import NATIVE, Chunks, DecodePlan, Heads, Work, refusals

PROGRAMS_PER_SM = 8
"""One-warp programs that keep a streaming multiprocessor busy."""

STATIC_SEQUENCES = 4
"""Up to this many sequences are split statically."""

MOST_SEQUENCES = 4096
"""Most sequences of a step: the plan is made by one program."""

SPREAD_ROWS = 4096
"""Up to this many heads of tokens are written by small programs."""

FULL_PRECISION_BYTES = 4
"""Bytes that a key and a value take in a ring, per channel."""


class PackedKernels:
    """The kernels for one page format and one shape of attention.

    Args:
        fmt: the pages' format.
        heads: the layer's shape; the same for all layers that share this.
        device: where they run.
        rotation_seed: of the random Hadamard rotation that queries, keys and values are turned by; None for none.

    Raises:
        ValueError: the shape is not served; names all reasons.
    """

    def __init__(self, fmt: PageFormat, heads: Heads, device: torch.device, rotation_seed: int | None = None) -> None:
        problems = refusals(fmt, heads)
        rotated = rotation_seed is not None
        if rotated and (heads.head_size & (heads.head_size - 1) or fmt.window):
            problems.append(f"with a rotation at head size {heads.head_size} (a power of two, no window)")
        if problems:
            raise ValueError(f"packed {fmt.method} kernels do not run {'; nor '.join(problems)}")
        self.fmt = fmt
        self.heads = heads
        self.rotated = rotated
        self._device = device
        multiprocessors = 4
        if device.type == "cuda":
            multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        # Small pages of tokens want deeper prefetching, and then half as many programs.
        deep = fmt.run_bytes < 64 * heads.head_size and not fmt.window
        resident = multiprocessors * PROGRAMS_PER_SM // (2 if deep else 1)
        # One program a KV head and slot of the grid; few heads need more slots to fill the device.
        self.programs = max(1, resident // heads.kv_heads)
        key_words = heads.head_size * fmt.key.bits // 16
        value_words = heads.head_size * fmt.value.bits // 16
        self._pads = {"KEY_PAD": _padded(key_words), "VALUE_PAD": _padded(value_words)}
        self._d_pad = _padded(heads.head_size)
        self._codes = {
            "KEY_BITS": fmt.key.bits,
            "VALUE_BITS": fmt.value.bits,
            "VALUE_GROUPS": fmt.value.groups,
            "D": heads.head_size,
            "PAGE": PAGE_TOKENS,
            "RUN": fmt.run_bytes,
            "HEADS": heads.kv_heads,
        }
        self._sides = {"KEY_GROUPS": fmt.key.groups, "SYMMETRIC": fmt.key.symmetric}
        self._rotation = {"ROTATED": rotated, "LOG_D": int(math.log2(heads.head_size)) if rotated else 0}
        self._signs = torch.zeros(1, device=device)
        if rotation_seed is not None:
            # The first row of the transform is all ones: what is left in the first column are the signs.
            # Inside an engine another device may be the default one.
            with torch.device("cpu"):
                self._signs = random_hadamard(heads.head_size, rotation_seed)[:, 0].contiguous().to(device)
        self.decode_options = {"STAGES": 5 if deep else 3, "num_warps": 1}
        self._no_ring = torch.zeros(1, dtype=heads.dtype, device=device)
        self._no_slots = torch.zeros(1, dtype=torch.int32, device=device)

    def warm(self, most_tokens: int) -> None:
        """Compile what prompts need, so that none waits for it; decoding is compiled where an engine tries itself out.

        Args:
            most_tokens: of a step.
        """
        heads, fmt = self.heads, self.fmt
        width = heads.query_heads + 2 * heads.kv_heads
        for tokens in sorted({2, min(most_tokens, SPREAD_ROWS // heads.kv_heads + 1)}):
            # As an engine hands them over: views of one product.
            both = torch.zeros(tokens, width, heads.head_size, dtype=heads.dtype, device=self._device)
            query, key, value = both.split([heads.query_heads, heads.kv_heads, heads.kv_heads], 1)
            blocks = -(-tokens // PAGE_TOKENS)
            pages = torch.zeros(blocks, heads.kv_heads, fmt.run_bytes, dtype=torch.uint8, device=self._device)
            row = torch.arange(blocks, dtype=torch.int32, device=self._device)[None]
            zero, length = (torch.tensor([x], device=self._device).int() for x in (0, tokens))
            chunks = Chunks(row, zero, length, zero, zero)
            outs = torch.zeros(2, tokens, heads.kv_heads, heads.head_size, dtype=heads.dtype, device=self._device)
            ring = None
            if fmt.window:
                shape = 1, heads.kv_heads, 2, RING_TOKENS, heads.head_size
                ring = torch.zeros(shape, dtype=heads.dtype, device=self._device)
            self.dequantise(key, value, pages, chunks, self.held([tokens]), zero, outs[0], outs[1], ring, zero)
            if ring is not None:
                self.store_chunks(key, value, pages, chunks, self.filled([(0, tokens)]), ring)
                self.append(key[:1], value[:1], pages, row, length, ring, zero)
                continue
            slots = torch.arange(tokens, device=self._device)
            self.store(key, value, pages, slots)
            if self.rotated:
                self.store(key, value, pages, slots, query, torch.empty_like(query))

    # ------------------------------------------------------------------ decode

    def new_plan(self, sequences: int, query_tokens: int = 1) -> DecodePlan:
        """Buffers for steps of at most this many sequences, each with at most this many query tokens."""
        if sequences > MOST_SEQUENCES:
            raise ValueError(f"a step takes at most {MOST_SEQUENCES} sequences, not {sequences}")
        columns = self.heads.group * query_tokens
        slots = self.programs + max(sequences, STATIC_SEQUENCES)

        def ints(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=self._device)

        shape = slots, self.heads.kv_heads, columns
        return DecodePlan(
            packed=ints(sequences),
            ends=ints(sequences + 1),
            owners=ints(self.programs),
            partials=torch.empty((*shape, self.heads.head_size), dtype=torch.float32, device=self._device),
            logs=torch.empty(shape, dtype=torch.float32, device=self._device),
        )

    def plan(
        self,
        plan: DecodePlan,
        lengths: torch.Tensor,
        slots: torch.Tensor | None = None,
        ring_from: torch.Tensor | None = None,
    ) -> None:
        """Split a step's work; once a step, before its layers.

        Args:
            lengths: ``(sequences,)``, new tokens included; 0 for padding.
            slots, ring_from: for formats with a window: each sequence's ring, and each ring's first position.
        """
        sequences = len(lengths)
        ring_tokens = FULL_PRECISION_BYTES * self.heads.head_size / self.fmt.token_bytes
        decode.plan_kernel[(1,)](
            lengths,
            self._no_slots if slots is None else slots,
            self._no_slots if ring_from is None else ring_from,
            plan.packed,
            plan.ends,
            plan.owners,
            sequences,
            self.programs,
            PAGE=PAGE_TOKENS,
            WINDOW=self.fmt.window,
            RING_WEIGHT=max(1, round(ring_tokens)),
            BLOCK=max(16, triton.next_power_of_2(len(plan.packed))),
            num_warps=4,
        )

    def decode(
        self,
        plan: DecodePlan,
        query: torch.Tensor,
        pages: torch.Tensor,
        table: torch.Tensor,
        lengths: torch.Tensor,
        out: torch.Tensor,
        ring: torch.Tensor | None = None,
        slots: torch.Tensor | None = None,
        balanced: bool | None = None,
    ) -> None:
        """Attend over what is stored, the new tokens included.

        Args:
            plan: made for these lengths.
            query: ``(sequences * query_tokens, query_heads, head_size)``; rotated already where the kernels rotate.
            out: as ``query``; where the result goes.
            balanced: which split; None chooses by the number of sequences.
        """
        sequences = len(lengths)
        tokens = len(query) // sequences
        if tokens > 1 and (problems := refusals(self.fmt, self.heads, tokens)):
            raise ValueError(f"packed {self.fmt.method} kernels do not run {'; nor '.join(problems)}")
        if balanced is None:
            balanced = sequences > STATIC_SEQUENCES
        splits = -(-self.programs // sequences)
        if not balanced and sequences > STATIC_SEQUENCES:
            raise ValueError(f"at most {STATIC_SEQUENCES} sequences are split statically, not {sequences}")
        arguments = {
            "query_ptr": query,
            "pages_ptr": pages,
            "table_ptr": table,
            "lengths_ptr": lengths,
            "packed_ptr": plan.packed,
            "ends_ptr": plan.ends,
            "ring_ptr": self._no_ring if ring is None else ring,
            "slots_ptr": self._no_slots if slots is None else slots,
            "partials_ptr": plan.partials,
            "logs_ptr": plan.logs,
            "query_stride": query.stride(0),
            "table_stride": table.stride(0),
            "scale_log2": self.heads.scaling * math.log2(math.e),
            "PER_CHANNEL": self.fmt.key.per_channel,
            "WINDOW": self.fmt.window,
            "RING": RING_TOKENS,
            "TOKENS": tokens,
            "GROUP": self.heads.group,
            "COLUMNS": max(8, triton.next_power_of_2(self.heads.group * tokens)),
            "D_PAD": self._d_pad,
            "RING_TILE": 16,
            "NATIVE": NATIVE,
            **self.decode_options,
            **self._codes,
            **self._sides,
            **self._pads,
        }
        if balanced:
            decode.balanced_kernel[(self.heads.kv_heads, self.programs)](
                **arguments, owners_ptr=plan.owners, sequences=sequences, programs=self.programs
            )
        else:
            decode.static_kernel[(self.heads.kv_heads, splits, sequences)](**arguments, splits=splits)
        chunk = 8 if balanced and sequences > 8 else 64
        decode.combine_kernel[(sequences, self.heads.kv_heads, self.heads.group * tokens)](
            plan.partials,
            plan.logs,
            plan.ends,
            out,
            self._signs,
            out.stride(0),
            splits,
            self.programs,
            sequences,
            BALANCED=balanced,
            CHUNK=chunk,
            HEADS=self.heads.kv_heads,
            TOKENS=tokens,
            GROUP=self.heads.group,
            D=self.heads.head_size,
            D_PAD=self._d_pad,
            num_warps=1 if chunk == 8 else 8,
            **self._rotation,
        )

    # ------------------------------------------------------------------- store

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        pages: torch.Tensor,
        slots: torch.Tensor,
        query: torch.Tensor | None = None,
        rotated: torch.Tensor | None = None,
    ) -> None:
        """Write tokens of a format without a window.

        Args:
            slots: ``(tokens,)`` of each key and value: ``page * PAGE_TOKENS + offset``, negative to skip it.
            query, rotated: queries to rotate on the way, and where to: ``(tokens, query_heads, head_size)``.
        """
        tokens = len(slots)
        queries = 0 if query is None else len(query)
        if not tokens:
            return
        # Few tokens are spread over as many programs as possible.
        rows = 2 if tokens * self.heads.kv_heads <= SPREAD_ROWS else 8
        turning = self.rotated and query is not None
        heads = max(tokens * self.heads.kv_heads, queries * self.heads.query_heads)
        store.store_kernel[(triton.cdiv(heads, rows), 3 if turning else 2)](
            key,
            value,
            key if query is None else query,
            key if rotated is None else rotated,
            pages,
            slots,
            self._signs,
            key.stride(0),
            value.stride(0),
            0 if query is None else query.stride(0),
            tokens,
            queries,
            QUERY_HEADS=self.heads.query_heads,
            ROWS=rows,
            num_warps=1,
            **self._codes,
            **self._sides,
            **self._store_pads,
            **self._rotation,
        )

    @property
    def _store_pads(self) -> dict[str, int]:
        """Without a product there is no smallest operand: only powers of two."""
        words = self.heads.head_size // 16
        return {
            "KEY_PAD": triton.next_power_of_2(words * self.fmt.key.bits),
            "VALUE_PAD": triton.next_power_of_2(words * self.fmt.value.bits),
        }

    def append(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        pages: torch.Tensor,
        table: torch.Tensor,
        lengths: torch.Tensor,
        ring: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Write one token of every sequence in a format with a window.

        Args:
            lengths: the new token included; 0 for padding.
        """
        rings.append_kernel[(self.heads.kv_heads, 2, len(lengths))](
            key,
            value,
            pages,
            table,
            lengths,
            ring,
            slots,
            key.stride(0),
            value.stride(0),
            table.stride(0),
            RING=RING_TOKENS,
            D_PAD=self._d_pad,
            num_warps=4,
            **self._codes,
            **self._store_pads,
        )

    def store_chunks(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        pages: torch.Tensor,
        chunks: Chunks,
        filled: Work,
        ring: torch.Tensor,
    ) -> None:
        """Write prompts' chunks in a format with a window: the pages they fill, then the rings.

        Args:
            filled: the pages they fill, see :meth:`filled`.
        """
        if chunks.slots is None:
            raise ValueError("a format with a window needs the rings' slots")
        if len(filled.rows):
            rings.pack_kernel[(len(filled.rows), self.heads.kv_heads, 2)](
                key,
                value,
                pages,
                chunks.table,
                chunks.starts,
                chunks.rows,
                ring,
                chunks.slots,
                filled.rows,
                filled.pages,
                key.stride(0),
                value.stride(0),
                chunks.table.stride(0),
                RING=RING_TOKENS,
                num_warps=4,
                **self._codes,
                **self._store_pads,
            )
        rings.ring_kernel[(len(chunks.lengths), self.heads.kv_heads, 2)](
            key,
            value,
            chunks.starts,
            chunks.lengths,
            chunks.rows,
            ring,
            chunks.slots,
            key.stride(0),
            value.stride(0),
            D=self.heads.head_size,
            RING=RING_TOKENS,
            HEADS=self.heads.kv_heads,
            D_PAD=self._d_pad,
            num_warps=4,
        )

    def filled(self, spans: Sequence[tuple[int, int]]) -> Work:
        """The pages that become full when positions ``[start, stop)`` of each sequence are written."""
        return self.work([(start // PAGE_TOKENS, stop // PAGE_TOKENS) for start, stop in spans])

    def held(self, lengths: Sequence[int]) -> Work:
        """All pages of sequences of these lengths, the last ones in part."""
        return self.work([(0, -(-length // PAGE_TOKENS)) for length in lengths])

    def work(self, ranges: Sequence[tuple[int, int]]) -> Work:
        """Ranges of pages of each sequence."""
        rows = [row for row, (first, stop) in enumerate(ranges) for _ in range(first, stop)]
        pages = [page for first, stop in ranges for page in range(first, stop)]
        both = torch.tensor([rows, pages], dtype=torch.int32, device="cpu")
        if self._device.type == "cuda" and rows:
            both = both.pin_memory().to(self._device, non_blocking=True)
        return Work(both[0], both[1])

    # -------------------------------------------------------------- dequantise

    def dequantise(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        pages: torch.Tensor,
        chunks: Chunks,
        held: Work,
        out_rows: torch.Tensor,
        key_out: torch.Tensor,
        value_out: torch.Tensor,
        ring: torch.Tensor | None = None,
        ring_from: torch.Tensor | None = None,
    ) -> None:
        """What chunks attend to, dense: their context as stored, their own tokens exact. Before they are stored.

        Args:
            held: the sequences' pages, see :meth:`held`.
            out_rows: ``(rows,)`` int32: where each sequence begins in the output.
            key_out, value_out: ``(tokens, kv_heads, head_size)``.
        """
        dequantise.dequantise_kernel[(len(held.rows), self.heads.kv_heads, 2)](
            key_out,
            value_out,
            key,
            value,
            pages,
            chunks.table,
            chunks.starts,
            chunks.lengths,
            chunks.rows,
            out_rows,
            self._no_ring if ring is None else ring,
            self._no_slots if chunks.slots is None else chunks.slots,
            self._no_slots if ring_from is None else ring_from,
            self._signs,
            held.rows,
            held.pages,
            key.stride(0),
            value.stride(0),
            chunks.table.stride(0),
            PER_CHANNEL=self.fmt.key.per_channel,
            WINDOW=self.fmt.window,
            RING=RING_TOKENS,
            num_warps=4,
            **self._codes,
            **self._sides,
            **self._store_pads,
            **self._rotation,
        )


def _padded(size: int) -> int:
    """The next power of two that an operand of a product may have."""
    return max(16, int(triton.next_power_of_2(size)))
