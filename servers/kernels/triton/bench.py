"""Decode attention over packed pages on this GPU: ``make bench-kernels``.

One layer of an 8B Llama (32 query heads, 8 KV heads, head size 128), one new token a sequence, pages in random order.
Times are replays of a CUDA graph over as many layers as exceed the level-2 cache, split and combine together. Bytes are
those the kernel must read; beside them stand the copy rate of this device and the faster of torch's bfloat16 attentions
(cuDNN's and FlashAttention's, over contiguous keys and values) where all sequences are equally long.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvload.servers.kernels import packed
from kvload.servers.kernels.formats import PACKED_METHODS, PAGE_TOKENS, RING_TOKENS, packed_tokens, page_format
from kvload.servers.kernels.triton.launch import STATIC_SEQUENCES, PackedKernels
from kvload.servers.kernels.triton.probe import read_kernel
from kvload.servers.kernels.triton.shapes import Chunks, Heads

HEADS = Heads(32, 8, 128, torch.bfloat16, 128**-0.5)
SHAPES = ((1, 1), (1, 8), (1, 32), (16, 1), (16, 8), (16, 32), (64, 1), (64, 8), (64, 32), (256, 1), (256, 8))
"""Sequences and thousands (1024) of tokens of each."""

CACHE_BYTES = 256 << 20
"""Layers together are larger than this, so that none is found in the level-2 cache."""

RANDOM_TOKENS = 1 << 16
"""Keys and values that are made at once."""

TOLERANCE = 6e-3


@dataclass(frozen=True)
class Timing:
    """One measured kernel.

    Attributes:
        what: shape or operation.
        method: page format, or who made the bfloat16 attention.
        us: microseconds of one layer, median of replays.
        gb: bytes it must move, in 1e9.
        split: ``balanced`` or ``static``.
        error: relative error against the reference; None where it was not checked.
    """

    what: str
    method: str
    us: float
    gb: float
    split: str = ""
    error: float | None = None

    @property
    def rate(self) -> float:
        """GB/s."""
        return self.gb / self.us * 1e6


def replayed(calls: list[Callable[[], None]], repeats: int = 9) -> float:
    """Microseconds of one call, as the median of replays of a graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / len(calls))
    return float(sorted(times)[len(times) // 2])


def bandwidth() -> dict[str, float]:
    """Copy (bytes read and written) and read-only rates of this device, GB/s."""
    size = 1 << 31
    a = torch.empty(size // 4, dtype=torch.int32, device="cuda").random_()
    b = torch.empty_like(a)
    eager = []
    for _ in range(9):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        b.copy_(a)
        last.record()
        torch.cuda.synchronize()
        eager.append(first.elapsed_time(last) * 1e3)
    grid = a.numel() // (1024 * 16)
    reading = replayed([lambda: read_kernel[(grid,)](a, b, BLOCK=1024, TIMES=16)] * 2)
    return {"copy": 2 * size / sorted(eager)[4] / 1e3, "read": size / reading / 1e3}


class Layers:
    """Cached sequences of one format, several layers of them.

    Args:
        method: the pages' format.
        lengths: tokens of each sequence.
        seed: of keys, values and the order of the pages.
    """

    def __init__(self, method: str, lengths: list[int], seed: int = 0) -> None:
        self.kernels = PackedKernels(page_format(method, HEADS.head_size), HEADS, torch.device("cuda"))
        fmt = self.kernels.fmt
        generator = torch.Generator(device="cuda").manual_seed(seed)
        blocks = [-(-length // PAGE_TOKENS) for length in lengths]
        order = torch.randperm(sum(blocks), generator=generator, device="cuda").int()
        self.table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32, device="cuda")
        for row, part in enumerate(order.split(blocks)):
            self.table[row, : len(part)] = part
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device="cuda")
        self.slots = torch.randperm(len(lengths), generator=generator, device="cuda").int()
        self.ring_from = torch.zeros(len(lengths), dtype=torch.int32, device="cuda")
        self.bytes = sum(self._bytes(length) for length in lengths)
        layers = min(16, max(4, -(-CACHE_BYTES // self.bytes)))
        shape = sum(blocks), HEADS.kv_heads, fmt.run_bytes
        first = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        rings = len(lengths) if fmt.window else 1
        ring = torch.zeros(rings, HEADS.kv_heads, 2, RING_TOKENS, HEADS.head_size, dtype=HEADS.dtype, device="cuda")
        self._fill(lengths, first, ring, generator)
        few = 2 if self.bytes > CACHE_BYTES else layers
        self.pages = [first, *(first.clone() for _ in range(few - 1))]
        self.rings = [ring, *(ring.clone() for _ in range(few - 1))]
        self.query = torch.randn(
            len(lengths), HEADS.query_heads, HEADS.head_size, generator=generator, device="cuda"
        ).to(HEADS.dtype)
        self.out = torch.empty_like(self.query)
        self.plan = self.kernels.new_plan(len(lengths))
        self.kernels.plan(self.plan, self.lengths, self.slots, self.ring_from)

    def _bytes(self, length: int) -> int:
        fmt = self.kernels.fmt
        stored = packed_tokens(length) if fmt.window else length
        exact = (length - stored) * 4 * HEADS.head_size
        return HEADS.kv_heads * (round(stored * fmt.token_bytes) + exact)

    def _fill(self, lengths: list[int], pages: torch.Tensor, ring: torch.Tensor, generator: torch.Generator) -> None:
        for row, length in enumerate(lengths):
            for start in range(0, length, RANDOM_TOKENS):
                stop = min(length, start + RANDOM_TOKENS)
                shape = stop - start, HEADS.kv_heads, HEADS.head_size
                key, value = (torch.randn(shape, generator=generator, device="cuda").to(HEADS.dtype) for _ in range(2))
                if self.kernels.fmt.window:
                    one = slice(row, row + 1)
                    starts, stops, rows = (
                        torch.tensor([x], dtype=torch.int32, device="cuda") for x in (start, stop, 0)
                    )
                    chunks = Chunks(self.table[one], starts, stops, rows, self.slots[one])
                    self.kernels.store_chunks(key, value, pages, chunks, self.kernels.filled([(start, stop)]), ring)
                else:
                    position = torch.arange(start, stop, device="cuda")
                    slots = self.table[row].long()[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
                    self.kernels.store(key, value, pages, slots)

    def decode(self, layer: int, balanced: bool) -> None:
        """Attention of one layer."""
        self.kernels.decode(
            self.plan,
            self.query,
            self.pages[layer],
            self.table,
            self.lengths,
            self.out,
            self.rings[layer],
            self.slots,
            balanced,
        )

    def error(self) -> float:
        """Largest relative error of the first and the last sequence."""
        worst = 0.0
        for row in {0, len(self.lengths) - 1}:
            ring = self.rings[0][int(self.slots[row])] if self.kernels.fmt.window else None
            key, value = packed.load_sequence(
                self.kernels.fmt, self.pages[0], self.table[row], int(self.lengths[row]), ring
            )
            expected = packed.attend(self.query[row : row + 1], key.double(), value.double(), HEADS.scaling)
            found = self.out[row : row + 1].double()
            worst = max(worst, float((found - expected).norm() / expected.norm()))
        return worst

    def time(self, what: str, balanced: bool) -> Timing:
        """Measure, and check what was computed."""
        calls = [lambda layer=layer: self.decode(layer, balanced) for layer in range(len(self.pages))]
        us = replayed(calls * max(1, 4 // len(calls)))  # type: ignore[arg-type]
        split = "balanced" if balanced else "static"
        return Timing(what, self.kernels.fmt.method, us, self.bytes / 1e9, split, self.error())


def lengths_of(name: str) -> list[int]:
    """Ragged batches of 64 sequences."""
    generator = torch.Generator().manual_seed(1)
    if name == "uniform 1k-15k":
        return [int(x) for x in torch.randint(1024, 15361, (64,), generator=generator)]
    if name == "lognormal":
        return [int(x) for x in torch.randn(64, generator=generator).exp_().mul_(3000).clamp_(64, 60000)]
    return [65536, *[1024] * 63]


def flash(what: str, lengths: list[int]) -> list[Timing]:
    """torch's bfloat16 attention over sequences of one length; nothing for ragged ones."""
    found: list[Timing] = []
    count, longest = len(lengths), max(lengths)
    if min(lengths) < longest:
        return found
    gb = sum(lengths) * HEADS.kv_heads * HEADS.head_size * 4 / 1e9
    query = torch.randn(count, HEADS.query_heads, 1, HEADS.head_size, dtype=HEADS.dtype, device="cuda")
    both = torch.randn(2, count, HEADS.kv_heads, longest, HEADS.head_size, dtype=HEADS.dtype, device="cuda")
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):

        def call(backend: SDPBackend = backend) -> None:
            with sdpa_kernel(backend):
                functional.scaled_dot_product_attention(query, both[0], both[1], enable_gqa=True)

        try:
            found.append(Timing(what, name, replayed([call] * 4), gb))
        except RuntimeError as error:
            print(f"{what}: no {name}: {str(error).splitlines()[0]}", file=sys.stderr)
    torch.cuda.empty_cache()
    return found


def writing(method: str) -> list[Timing]:
    """One decode step's tokens, a chunk of a prompt, and a chunk read back."""
    layers = Layers(method, [8192] * 64)
    kernels, fmt = layers.kernels, layers.kernels.fmt
    found = []
    key, value = (torch.randn(8192, 8, 128, dtype=HEADS.dtype, device="cuda") for _ in range(2))
    token_gb = HEADS.kv_heads * (4 * HEADS.head_size + fmt.token_bytes) / 1e9
    zero, full = (torch.tensor([x], dtype=torch.int32, device="cuda") for x in (0, 8192))
    chunks = Chunks(layers.table[:1], zero, full, zero, layers.slots[:1])
    if fmt.window:
        for name, lengths in (("none full", layers.lengths - 1), ("all full", layers.lengths)):

            def append(lengths: torch.Tensor = lengths) -> None:
                ring = layers.rings[0]
                kernels.append(key, value, layers.pages[0], layers.table, lengths, ring, layers.slots)

            found.append(Timing(f"write 64 tokens, {name}", method, replayed([append] * 8), 64 * token_gb))
        filled = kernels.filled([(0, 8192)])
        eager = _eager(lambda: kernels.store_chunks(key, value, layers.pages[0], chunks, filled, layers.rings[0]))
        found.append(Timing("write 8192 tokens, eager", method, eager, 8192 * token_gb))
    else:
        step = layers.table[:, 0].long() * PAGE_TOKENS
        found.append(
            Timing(
                "write 64 tokens",
                method,
                replayed([lambda: kernels.store(key, value, layers.pages[0], step)] * 8),
                64 * token_gb,
            )
        )
        position = torch.arange(8192, device="cuda")
        slots = layers.table[0].long()[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
        calls = [lambda: kernels.store(key, value, layers.pages[0], slots)] * 4
        found.append(Timing("write 8192 tokens", method, replayed(calls), 8192 * token_gb))
    chunks = Chunks(layers.table[:1], full, full, zero, layers.slots[:1])
    held = kernels.held([8192])
    key_out, value_out = torch.empty_like(key), torch.empty_like(key)
    eager = _eager(
        lambda: kernels.dequantise(
            key, value, layers.pages[0], chunks, held, zero, key_out, value_out, layers.rings[0], layers.ring_from
        )
    )
    found.append(Timing("read back 8192 tokens, eager", method, eager, 8192 * token_gb))
    return found


def _eager(call: Callable[[], None], repeats: int = 9) -> float:
    call()
    times = []
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 1e3)
    return float(sorted(times)[len(times) // 2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where all figures go")
    parser.add_argument("--methods", default=",".join(PACKED_METHODS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: bench-kernels needs a CUDA GPU; the kernels' tests run without one (make test)")
    card = subprocess.run(
        ["nvidia-smi", "-L"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    card = card.split("(UUID")[0].strip() or torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    rates = bandwidth()
    print(f"{card}; {versions}; copy {rates['copy']:.0f} GB/s, read-only {rates['read']:.0f} GB/s", flush=True)
    batches = {f"{count} x {kilo}k": [kilo * 1024] * count for count, kilo in SHAPES}
    batches |= {name: lengths_of(name) for name in ("uniform 1k-15k", "lognormal", "one of 64k, 63 of 1k")}
    timings: list[Timing] = []
    best: dict[str, float] = {}
    for what, lengths in batches.items():
        others = flash(what, lengths)
        timings += others
        if others:
            best[what] = min(t.us for t in others)
        for method in options.methods.split(","):
            layers = Layers(method, lengths)
            timings.append(layers.time(what, balanced=True))
            if len(lengths) <= STATIC_SEQUENCES:
                timings.append(layers.time(what, balanced=False))
            del layers
            torch.cuda.empty_cache()
        print(what, "done", file=sys.stderr, flush=True)
    for method in options.methods.split(","):
        timings += writing(method)
        torch.cuda.empty_cache()
    _show(timings, rates, best)
    if options.json:
        options.json.write_text(json.dumps(_report(card, versions, rates, timings), indent=1))
    wrong = [t for t in timings if t.error is not None and not t.error < TOLERANCE]
    if wrong:
        sys.exit(f"error: {len(wrong)} results are further than {TOLERANCE} from the reference: {wrong[:3]}")


def _report(card: str, versions: str, rates: dict[str, float], timings: list[Timing]) -> dict[str, Any]:
    return {"card": card, "versions": versions, "rates": rates, "timings": [asdict(t) for t in timings]}


def _show(timings: list[Timing], rates: dict[str, float], best: dict[str, float]) -> None:
    """us a layer, share of the copy rate, and how many times faster than the best bfloat16 attention."""
    print("| what | method | split | us | GB/s | % of copy | x bf16 | error |\n|---|---|---|---|---|---|---|---|")
    for t in timings:
        faster = f"{best[t.what] / t.us:.2f}" if t.what in best else ""
        error = "" if t.error is None else f"{t.error:.1e}"
        share = 100 * t.rate / rates["copy"]
        print(f"| {t.what} | {t.method} | {t.split} | {t.us:.1f} | {t.rate:.0f} | {share:.0f} | {faster} | {error} |")


if __name__ == "__main__":
    main()
