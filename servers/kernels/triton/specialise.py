"""What a kernel is compiled for, and what it is not."""

from collections.abc import Callable
from typing import Any

import triton

INDEX_POINTERS = frozenset(
    {
        "lengths_ptr",
        "slots_ptr",
        "ring_from_ptr",
        "packed_ptr",
        "ends_ptr",
        "owners_ptr",
        "table_ptr",
        "starts_ptr",
        "rows_ptr",
        "out_rows_ptr",
        "work_rows_ptr",
        "work_pages_ptr",
        # Of the kernels that evict.
        "table",
        "after",
        "first",
        "first_query",
        "prompt",
        "first_before",
        "first_after",
        "held",
        "lse",
    }
)
"""Tensors of a few numbers, read one by one."""

COUNTS = frozenset(
    {"sequences", "programs", "splits", "tokens", "queries", "table_stride", "table_row", "out_row", "lse_head"}
)
"""Numbers that change from step to step."""


def kernel(function: Callable[..., Any]) -> Any:
    """``triton.jit``, compiled once for all batches.

    Triton compiles a kernel anew where an integer becomes a multiple of 16 or a pointer stops being one. What a step
    brings are slices whose beginnings depend on the batch: now and then a request would wait for the compiler.
    """
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if name in COUNTS],
        do_not_specialize_on_alignment=[name for name in names if name in INDEX_POINTERS],
    )
