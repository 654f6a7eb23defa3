"""What vLLM is told about a packed page."""

from typing import Any

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvload.servers.kernels.formats import PAGE_TOKENS, PageFormat, page_format
from kvload.servers.plugins.vllm import contract, layout
from kvload.servers.plugins.vllm.selection import current

ROTATION_SEED = 0
"""Of the random Hadamard rotation; the embedded engine's."""


def chosen_format(head_size: int) -> PageFormat:
    """The page format of this process's method.

    Raises:
        ContractError: it has none at this head size.
    """
    try:
        return page_format(current().method, head_size)
    except ValueError as error:
        contract.refuse(current().method, [f"with head size {head_size}: {error}"])
        raise


def rotation_seed() -> int | None:
    """The seed of the rotation that this process's method asks for; None for none."""
    return ROTATION_SEED if current().method == "int4" and current().options.get("rotate", 1) else None


def packed_spec(spec: Any) -> Any:
    """A layer's specification with packed pages: each token of a head takes two times ``head_size`` bytes.

    Raises:
        ContractError: the layer is not one of plain full attention, or the block size is not the page's.
    """
    if spec.dtype is torch.uint8:
        return spec
    method = current().method
    if type(spec) is not FullAttentionSpec:
        contract.refuse(method, [f"where a layer is not one of full attention ({type(spec).__name__})"])
    if spec.block_size != PAGE_TOKENS:
        contract.refuse(method, [f"with blocks of {spec.block_size} tokens (--block-size {PAGE_TOKENS})"])
    fmt = chosen_format(spec.head_size)
    half, rest = divmod(fmt.run_bytes, 2 * PAGE_TOKENS)
    if rest:
        contract.refuse(method, [f"with head size {spec.head_size}: its pages are not whole bytes a token"])
    return layout.respecified(FullAttentionSpec, spec, dtype=torch.uint8, head_size=half, head_size_v=half)


def runs(cache: torch.Tensor) -> torch.Tensor:
    """A layer's tensor as ``(pages, kv_heads, run_bytes)`` uint8, whatever vLLM shaped it as."""
    return cache.view(cache.shape[0], cache.shape[1], -1)
