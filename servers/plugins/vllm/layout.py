r"""How vLLM's releases specify and lay out a KV cache: the one place that knows their differences.

============================  =====================================  ==========================================
\                             0.26                                   0.32, 0.33
============================  =====================================  ==========================================
who lets a backend choose     nobody: the layer's method is wrapped  ``AttentionBackend.customize_spec``
tensor of a layer             shape from the backend                 ``[blocks, heads, tokens, content]``, always
keys and values               halves of the last axis                halves of the last axis
padding behind a page         ``page_size_padded``                   ``page_size_padded``
============================  =====================================  ==========================================

A *page* is a block of one layer: the keys and values of ``block_size`` tokens of all KV heads of this rank.
"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

MODERN = (0, 32)
"""From here on backends choose their pages through an official hook."""

Spec = TypeVar("Spec")


def let_backends_choose_pages(release: tuple[int, int]) -> None:
    """Give 0.26 the hook that later releases have: ``customize_spec`` of a layer's backend. Once per process."""
    if release >= MODERN:
        return
    from vllm.model_executor.layers.attention.attention import Attention

    original = Attention.get_kv_cache_spec
    if getattr(original, "asks_backend", False):
        return

    def get_kv_cache_spec(self: Any, vllm_config: Any) -> Any:
        spec = original(self, vllm_config)
        customise = getattr(self.attn_backend, "customize_spec", None)
        return customise(spec) if customise is not None and spec is not None else spec

    get_kv_cache_spec.asks_backend = True  # type: ignore[attr-defined]
    Attention.get_kv_cache_spec = get_kv_cache_spec


def respecified(kind: type[Spec], spec: Any, **changes: Any) -> Spec:
    """A specification of another class with the fields of ``spec`` and some changed."""
    own = {field.name for field in fields(kind) if field.init}  # type: ignore[arg-type]
    kept = {field.name: getattr(spec, field.name) for field in fields(spec) if field.init and field.name in own}
    return kind(**{**kept, **changes})


def page_bytes(spec: Any) -> int:
    """Bytes of a page without its padding."""
    return int(spec.real_page_size_bytes)


def keys_and_values(cache: "torch.Tensor", head_size: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Views ``(blocks, heads, tokens, head_size)`` of a layer's tensor, whose last axis holds both."""
    return cache[..., :head_size], cache[..., head_size : 2 * head_size]


def padding(cache: "torch.Tensor", offset: int, heads: int, tokens: int) -> "torch.Tensor":
    """The padding behind each page as float32 ``(blocks, heads, tokens)``.

    Args:
        cache: a layer's tensor, its first axis over the blocks, each a page apart.
        offset: bytes from a page's beginning to its padding.
    """
    import torch

    element = cache.element_size()
    stride = cache.stride(0) * element // 4
    start = (cache.storage_offset() * element + offset) // 4
    view = torch.empty(0, dtype=torch.float32, device=cache.device)
    return view.set_(cache.untyped_storage(), start, (cache.shape[0], heads, tokens), (stride, tokens, 1))
