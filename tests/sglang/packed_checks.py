"""Runs with SGLang's source on the path: its attention backend over packed pages, against the kernels' torch reference.

    KVLOAD_SGLANG_METHOD='{"method": "int4"}' PYTHONPATH=SOURCE:CHECKOUT python packed_checks.py

Prints what it checked; ends with an error otherwise.
"""

import os
import types

os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.sglang import stubs

stubs.install()

import torch
from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

from kvload.servers.plugins import sglang as plugin

plugin.register()

from kvload.servers.kernels import packed
from kvload.servers.kernels.formats import RING_TOKENS, PageFormat
from kvload.servers.kernels.quantise import random_hadamard
from kvload.servers.plugins.sglang.packed import backend
from kvload.servers.plugins.sglang.packed.formats import rotation_seed
from kvload.servers.plugins.sglang.packed.pool import PackedPool
from tests.sglang import rig

HEADS, GROUP, SIZE = rig.HEADS, rig.GROUP, rig.SIZE


class Reference:
    """One request, by the torch reference alone."""

    def __init__(self, fmt: PageFormat) -> None:
        self.fmt = fmt
        self.pages = torch.zeros(8, HEADS, fmt.run_bytes, dtype=torch.uint8)
        self.table = torch.arange(8)
        self.ring = torch.zeros(HEADS, 2, RING_TOKENS, SIZE, dtype=rig.DTYPE) if fmt.window else None
        seed = rotation_seed()
        self.turn = None if seed is None else random_hadamard(SIZE, seed)

    def attend(self, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decoding: bool) -> torch.Tensor:
        """The next tokens of the request."""
        stop = start + len(q)
        stored = (k, v) if self.turn is None else (k @ self.turn, v @ self.turn)
        before = None if decoding else self._read(start)
        if self.ring is not None:
            packed.store_windowed(self.fmt, self.pages, self.table, self.ring, start, *stored)
        else:
            packed.store_tokens(self.fmt, self.pages, torch.arange(start, stop), *stored)
        if before is None:
            keys, values = self._read(stop)
        else:
            keys, values = (torch.cat([x, new.transpose(0, 1)], 1) for x, new in zip(before, (k, v), strict=True))
        return packed.attend(q, keys, values, SIZE**-0.5)

    def _read(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = packed.load_sequence(self.fmt, self.pages, self.table, length, self.ring, 0)
        return found if self.turn is None else (found[0] @ self.turn.T, found[1] @ self.turn.T)


def requests(graphs: bool) -> None:
    """Two requests, in chunks and then generating, side by side."""
    engine = rig.Rig(64)
    assert isinstance(engine.pool, PackedPool)
    assert sum(engine.pool.get_kv_size_bytes()) == engine.pool.pages[0].nbytes
    made = backend.PackedBackend(engine.runner)
    if graphs:
        made.init_cuda_graph_state(rig.REQUESTS, rig.REQUESTS)
    source = torch.Generator().manual_seed(5)
    reqs = [types.SimpleNamespace(req_pool_idx=None) for _ in range(2)]
    engine.requests.alloc(reqs)
    ids = [req.req_pool_idx for req in reqs]
    for place, name in enumerate(ids):
        pages = engine.allocator.alloc(256)
        engine.requests.req_to_token[name, :256] = pages.int()
        assert place or int(pages[0]) >= 64
    references = [Reference(engine.pool.format) for _ in ids]
    worst = 0.0
    steps = [([0, 0], [70, 3], False), ([70, 3], [71, 130], False)]
    steps += [([71 + i, 130 + i], [72 + i, 131 + i], True) for i in range(20)]
    for number, (starts, stops, decoding) in enumerate(steps):
        made_batch = rig.batch(engine, ids, starts, stops, [71, 130], decoding)
        count = len(made_batch.out_cache_loc)
        fresh = torch.randn(count, HEADS * (GROUP + 2), SIZE, generator=source)
        q, k, v = rig.parts(fresh)
        if decoding and graphs:
            made.init_forward_metadata_out_graph(made_batch, in_capture=number == 2)
        else:
            made.init_forward_metadata(made_batch)
        forward = made.forward_decode if decoding else made.forward_extend
        out = forward(q.reshape(count, -1), k, v, engine.layer(), made_batch).view(count, -1)
        place = 0
        for reference, start, stop in zip(references, starts, stops, strict=True):
            part = slice(place, place + stop - start)
            wanted = reference.attend(start, q[part], k[part], v[part], decoding)
            worst = max(worst, float((wanted.reshape(stop - start, -1) - out[part]).abs().max()))
            place = part.stop
        assert worst < 5e-3, f"step {number}: {worst}"
    print(f"requests: graphs {graphs}, worst {worst:.1e}")  # noqa: T201


def main() -> None:
    """All checks."""
    rig.publish()
    FlashAttentionBackend._compute_scheduler_metadata = lambda *_, **__: None
    vars(backend)["flash_attn_varlen_func"] = rig.dense
    for graphs in (False, True):
        requests(graphs)


if __name__ == "__main__":
    main()
