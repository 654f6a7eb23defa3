"""A pool of packed pages, in place of SGLang's pool of keys and values."""

import math
from typing import Any, NoReturn

import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from kvload.servers.plugins.sglang.packed.formats import chosen_format


class PackedPool(MHATokenToKVPool):
    """Pages ``(pages, kv_heads, run_bytes)`` uint8 a layer; page 0 takes what a graph's padding rows write.

    Its element is a byte, so that no model writes keys and values into it by itself.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "dtype": torch.uint8, "enable_kv_cache_copy": False})

    def _create_buffers(self) -> None:
        self.format = chosen_format(self.head_dim)
        shape = self.size // self.page_size + 1, self.head_num, self.format.run_bytes
        with self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE):
            self.pages = [torch.zeros(shape, dtype=torch.uint8, device=self.device) for _ in range(self.layer_num)]
        self.k_buffer: list[torch.Tensor] = self.pages
        self.v_buffer: list[torch.Tensor] = []
        self.k_scale_buffer = self.v_scale_buffer = self.dq_k_buffer = self.dq_v_buffer = None

    def layer(self, layer_id: int) -> torch.Tensor:
        """One layer's pages."""
        found: torch.Tensor = self.pages[layer_id - self.start_layer]
        return found

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Bytes of keys and of values, what scales them counted with the keys."""
        whole = sum(pages.nbytes for pages in self.pages)
        values = self.format.key_side_offset - self.format.value_offset
        share = whole // self.format.run_bytes * values
        return whole - share, share

    def get_key_buffer(self, layer_id: int) -> NoReturn:
        """There are no keys as such."""
        raise NotImplementedError("packed pages are read by kvload's attention backend alone")

    def get_value_buffer(self, layer_id: int) -> NoReturn:
        """There are no values as such."""
        self.get_key_buffer(layer_id)

    def get_kv_buffer(self, layer_id: int) -> NoReturn:
        """Neither."""
        self.get_key_buffer(layer_id)

    def set_kv_buffer(self, *arguments: Any, **options: Any) -> NoReturn:
        """Pages are written by kernels."""
        raise NotImplementedError("packed pages are written by kvload's attention backend alone")

    def move_kv_cache(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> NoReturn:
        """A token cannot leave its page."""
        raise NotImplementedError("packed tokens are not moved")


def packed_pool(original: Any, configurator: Any, **options: Any) -> Any:
    """Around the building of the pool."""
    return original(configurator, **{**options, "mha_pool_class": PackedPool, "quant_method": None})


def packed_bytes(original: Any, sizes: Any, kvc: Any, num_layers: int) -> int:
    """In place of the bytes of a token in all layers."""
    from sglang.srt.runtime_context import get_parallel

    heads = int(kvc.model_config.get_num_kv_heads(get_parallel().attn_tp_size))
    return math.ceil(chosen_format(kvc.model_config.head_dim).token_bytes * heads * num_layers)


def less_rings(original: Any, configurator: Any, budget_bytes: int, **options: Any) -> Any:
    """Around the size of the pool for so many bytes: the rings of methods with a window come off them."""
    from sglang.srt.runtime_context import get_parallel, get_schedule

    model = configurator.model_config
    fmt = chosen_format(model.head_dim)
    slots = get_schedule().max_running_requests
    if fmt.window and slots is not None:
        heads = int(model.get_num_kv_heads(get_parallel().attn_tp_size))
        layers = configurator.layer_info.num_effective_layers
        budget_bytes -= (slots + 1) * heads * layers * fmt.ring_bytes()
    return original(configurator, max(0, budget_bytes), **options)
