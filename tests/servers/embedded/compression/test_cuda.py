"""Every method on a GPU beside the same steps on the processor. Needs a CUDA device."""

import pytest
import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import CacheGeometry, StepEntry
from kvload.servers.kernels.attention import AttentionExtras

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SPECS = [
    *METHODS,
    "h2o:budget=64,recent=16",
    "snapkv:budget=64,window=16",
    "streamingllm:start=4,recent=64",
    "leankv:low=0.4,high=1.5,buffer=16",
]


def play(spec: str, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Two sequences: chunked prompts, mixed steps, 140 generated tokens."""
    geometry = CacheGeometry(2, 4, 2, 64, dtype, torch.device(device))
    cache = build_cache(geometry, parse_method(spec), 64 << 20)
    random = torch.Generator().manual_seed(1)
    a, b = cache.open(), cache.open()
    steps = [[(a, 300, 300)], [(a, 1, 300), (b, 200, 260)], [(b, 60, 260), (a, 1, 300)]]
    steps += [[(a, 1, 300), (b, 1, 260)]] * 140
    found = []
    for step in steps:
        for sequence, new, _ in step:
            assert cache.reserve(sequence, new)
        plan = cache.plan([StepEntry(*entry) for entry in step])
        tokens = sum(new for _, new, _ in step)
        for layer in range(geometry.layers):
            shapes = (geometry.query_heads, geometry.kv_heads, geometry.kv_heads)
            drawn = [torch.randn(tokens, heads, 64, generator=random).to(device, dtype) for heads in shapes]
            out = cache.attend(layer, plan, drawn[0], drawn[1], drawn[2], AttentionExtras(0.125))
            found.append(out.float().cpu())
        cache.commit(plan)
    cache.close(a)
    cache.close(b)
    assert cache.allocated_bytes == 0
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
def test_gpu_and_processor_agree(spec: str, dtype: torch.dtype) -> None:
    """Per step by the root mean square: rounding differs, and with it now and then which token is dropped."""
    pairs = zip(play(spec, "cuda", dtype), play(spec, "cpu", dtype), strict=True)
    errors = sorted(float((x - y).square().mean().sqrt() / y.square().mean().sqrt()) for x, y in pairs)
    assert errors[len(errors) // 2] < (2e-3 if dtype == torch.float32 else 3e-2)
    assert errors[-1] < 0.2
