"""The Triton kernels against the torch reference: stores to the byte, attention to a stated error.

With CUDA the kernels are compiled and run on the GPU; elsewhere they are interpreted, on tiny shapes.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from kvload.servers.kernels import packed  # noqa: E402
from kvload.servers.kernels.formats import PACKED_METHODS, PAGE_TOKENS, RING_TOKENS, page_format  # noqa: E402
from kvload.servers.kernels.quantise import random_hadamard  # noqa: E402
from kvload.servers.kernels.triton.launch import PackedKernels  # noqa: E402
from kvload.servers.kernels.triton.shapes import Chunks, Heads  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")

ERROR = 6e-3
"""Relative error allowed of an output in bfloat16; its own rounding makes 2e-3."""

LENGTHS = (130, 3, 64)

SHAPES = [*((method, 64) for method in PACKED_METHODS), ("int4", 128), ("kivi-2", 96)]


@dataclass
class Case:
    """A layer's cache twice, written by the kernels and by the reference."""

    kernels: PackedKernels
    pages: torch.Tensor
    expected: torch.Tensor
    table: torch.Tensor
    slots: torch.Tensor
    ring: torch.Tensor
    expected_ring: torch.Tensor
    ring_from: torch.Tensor


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def case(
    method: str, size: int, *, dtype: torch.dtype = torch.bfloat16, group: int = 2, heads: int = 1, rotate: bool = False
) -> Case:
    shape = Heads(group * heads, heads, size, dtype, size**-0.5)
    kernels = PackedKernels(page_format(method, size), shape, DEVICE, 0 if rotate else None)
    if not CUDA:
        kernels.programs = 3
    pages = torch.full((10, heads, kernels.fmt.run_bytes), 255, dtype=torch.uint8)
    ring = torch.zeros(4, heads, 2, RING_TOKENS, size, dtype=dtype)
    table = torch.tensor([[3, 1, 6, 8], [0, 9, 9, 9], [5, 7, 2, 4]], dtype=torch.int32, device=DEVICE)
    return Case(
        kernels,
        pages.to(DEVICE),
        pages.clone(),
        table,
        ints(2, 0, 3),
        ring.to(DEVICE),
        ring.clone(),
        torch.zeros(4, dtype=torch.int32, device=DEVICE),
    )


def new_tokens(c: Case, counts: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    heads = c.kernels.heads
    # As an engine hands them over: views of one product of queries, keys and values.
    both = numbers(sum(counts), 2 * heads.kv_heads + 1, heads.head_size, seed=seed).to(heads.dtype).to(DEVICE)
    return both[:, : heads.kv_heads], both[:, heads.kv_heads : 2 * heads.kv_heads]


def chunks_of(c: Case, spans: list[tuple[int, int]]) -> Chunks:
    starts = [start for start, _ in spans]
    rows = [sum(stop - start for start, stop in spans[:index]) for index in range(len(spans))]
    return Chunks(c.table, ints(*starts), ints(*(stop for _, stop in spans)), ints(*rows), c.slots)


def write(c: Case, spans: list[tuple[int, int]], seed: int, *, one_by_one: bool = False) -> None:
    """Positions ``spans`` of the three sequences, by the kernels and by the reference."""
    # One token more than is stored.
    key, value = new_tokens(c, (*(stop - start for start, stop in spans), 1), seed)
    fmt = c.kernels.fmt
    if fmt.window:
        if one_by_one:
            c.kernels.append(key, value, c.pages, c.table, ints(*(stop for _, stop in spans)), c.ring, c.slots)
        else:
            c.kernels.store_chunks(key, value, c.pages, chunks_of(c, spans), c.kernels.filled(spans), c.ring)
        first = 0
        for row, (start, stop) in enumerate(spans):
            part = slice(first, first + stop - start)
            first = part.stop
            slot = int(c.slots[row])
            packed.store_windowed(
                fmt, c.expected, c.table[row].cpu(), c.expected_ring[slot], start, key[part].cpu(), value[part].cpu()
            )
        return
    slots = torch.cat(
        [
            c.table[row].cpu()[torch.arange(start, stop) // PAGE_TOKENS].long() * PAGE_TOKENS
            + torch.arange(start, stop) % PAGE_TOKENS
            for row, (start, stop) in enumerate(spans)
        ]
        + [torch.tensor([-1])]
    )
    c.kernels.store(key, value, c.pages, slots.to(DEVICE))
    key, value = key.cpu(), value.cpu()
    if c.kernels.rotated:
        turn = random_hadamard(c.kernels.heads.head_size, 0)
        key, value = key.float() @ turn, value.float() @ turn
    packed.store_tokens(fmt, c.expected, slots, key, value)


def expected_output(c: Case, query: torch.Tensor, lengths: tuple[int, ...], tokens: int = 1) -> torch.Tensor:
    outs = []
    heads = c.kernels.heads
    for row, length in enumerate(lengths):
        slot = int(c.slots[row])
        ring = c.ring[slot].cpu() if c.kernels.fmt.window else None
        key, value = packed.load_sequence(
            c.kernels.fmt, c.pages.cpu(), c.table[row].cpu(), length, ring, int(c.ring_from[slot])
        )
        if c.kernels.rotated:
            turn = random_hadamard(heads.head_size, 0)
            key, value = key @ turn.T, value @ turn.T
        part = query[row * tokens : (row + 1) * tokens].cpu()
        outs.append(packed.attend(part, key.double(), value.double(), heads.scaling))
    return torch.cat(outs)


def attended(c: Case, query: torch.Tensor, lengths: tuple[int, ...], *, balanced: bool) -> torch.Tensor:
    plan = c.kernels.new_plan(4, len(query) // len(lengths))
    c.kernels.plan(plan, ints(*lengths), c.slots, c.ring_from)
    out = torch.full_like(query, float("nan"))
    c.kernels.decode(plan, query, c.pages, c.table, ints(*lengths), out, c.ring, c.slots, balanced=balanced)
    return out.cpu().double()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a query token's output."""
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize(("method", "size"), SHAPES)
def test_stored_bytes_and_attention_are_the_references(method: str, size: int) -> None:
    c = case(method, size)
    write(c, [(0, length) for length in LENGTHS], seed=1)
    assert torch.equal(c.pages.cpu(), c.expected)
    assert torch.equal(c.ring.cpu(), c.expected_ring)
    query = numbers(3, 2, size, seed=5).bfloat16().to(DEVICE)
    expected = expected_output(c, query, LENGTHS)
    for balanced in (True, False):
        assert error(attended(c, query, LENGTHS, balanced=balanced), expected) < ERROR


@pytest.mark.parametrize("method", ["kivi-4", "kivi-2"])
def test_windowed_bytes_do_not_depend_on_how_they_arrive(method: str) -> None:
    c = case(method, 64)
    write(c, [(0, 126), (0, 1), (0, 63)], seed=1)
    for step in range(3):
        write(c, [(126 + step, 127 + step), (1 + step, 2 + step), (63 + step, 64 + step)], 2 + step, one_by_one=True)
    write(c, [(129, 256), (4, 64), (66, 140)], seed=9)
    assert torch.equal(c.pages.cpu(), c.expected)
    assert torch.equal(c.ring.cpu(), c.expected_ring)


def test_rotated_codes_differ_by_rounding_alone() -> None:
    c = case("int4", 64, rotate=True)
    write(c, [(0, 130), (0, 3), (0, 64)], seed=1)
    differing = (c.pages.cpu() != c.expected).float().mean()
    assert differing < 1e-3
    found, expected = (
        packed.load_sequence(c.kernels.fmt, pages, c.table[0].cpu(), 130)[0][:, 1:]
        for pages in (c.pages.cpu(), c.expected)
    )
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0)


@pytest.mark.parametrize("method", ["int8", "kivi-4"])
@pytest.mark.parametrize(
    ("group", "tokens", "dtype"), [(1, 1, torch.float16), (8, 1, torch.bfloat16), (4, 3, torch.float16)]
)
def test_group_sizes_and_several_query_tokens(method: str, group: int, tokens: int, dtype: torch.dtype) -> None:
    c = case(method, 64, group=group, dtype=dtype)
    write(c, [(0, length) for length in LENGTHS], seed=1)
    query = numbers(3 * tokens, group, 64, seed=5).to(dtype).to(DEVICE)
    found = attended(c, query, LENGTHS, balanced=True)
    assert error(found, expected_output(c, query, LENGTHS, tokens)) < ERROR


def test_what_a_prefix_hit_brought_is_read_as_packed() -> None:
    c = case("kivi-4", 64)
    write(c, [(0, 192), (0, 3), (0, 64)], seed=1)
    # The first sequence's second and third page came from a cache: its ring holds a former tenant's tokens.
    c.ring[int(c.slots[0])] = 100.0
    c.ring_from[int(c.slots[0])] = 192
    write(c, [(192, 195), (3, 4), (64, 65)], seed=2)
    lengths = (195, 4, 65)
    query = numbers(3, 2, 64, seed=5).bfloat16().to(DEVICE)
    assert error(attended(c, query, lengths, balanced=True), expected_output(c, query, lengths)) < ERROR


def test_small_steps_and_peaked_scores_keep_their_precision() -> None:
    """Value steps of 1e-3 and probabilities of 1e-4 would be lost in float16 without the softmax's shift."""
    c = case("int4", 64)
    key, value = new_tokens(c, (200,), seed=1)
    slots = c.table[0].long().repeat_interleave(PAGE_TOKENS)[:200] * PAGE_TOKENS
    slots += torch.arange(200, device=DEVICE) % PAGE_TOKENS
    c.kernels.store(key, value * 4e-3, c.pages, slots)
    query = 3 * numbers(1, 2, 64, seed=5).bfloat16().to(DEVICE)
    plan = c.kernels.new_plan(1)
    c.kernels.plan(plan, ints(200))
    out = torch.empty_like(query)
    c.kernels.decode(plan, query, c.pages, c.table[:1], ints(200), out, balanced=False)
    assert error(out.cpu().double(), expected_output(c, query, (200,))) < ERROR


def test_padding_rows_are_harmless() -> None:
    c = case("kivi-4", 64)
    write(c, [(0, 130), (0, 3), (0, 64)], seed=1)
    before = c.pages.clone(), c.ring.clone()
    key, value = new_tokens(c, (1, 1, 1), seed=2)
    c.kernels.append(key, value, c.pages, c.table, ints(0, 0, 0), c.ring, c.slots)
    assert torch.equal(c.pages, before[0])
    assert torch.equal(c.ring, before[1])
    query = numbers(3, 2, 64, seed=5).bfloat16().to(DEVICE)
    found = attended(c, query, (130, 0, 0), balanced=True)
    assert error(found[:1], expected_output(c, query[:1], (130,))) < ERROR
    assert not found[1:].any()


@pytest.mark.parametrize(("method", "rotate"), [("int8", False), ("int4", True), ("k4v2", False), ("kivi-2", False)])
def test_chunks_see_their_context_as_stored_and_themselves_exactly(method: str, rotate: bool) -> None:
    c = case(method, 64, rotate=rotate)
    starts = (130, 0, 64)
    write(c, [(0, 130), (0, 0), (0, 64)] if c.kernels.fmt.window else [(0, start) for start in starts], seed=1)
    spans = [(130, 150), (0, 7), (64, 65)]
    key, value = new_tokens(c, (20, 7, 1), seed=2)
    key_out, value_out = (torch.zeros(222, 1, 64, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    out_rows = (0, 150, 157)
    chunks = chunks_of(c, spans)
    c.kernels.dequantise(
        key,
        value,
        c.pages,
        chunks,
        c.kernels.held([150, 7, 65]),
        ints(*out_rows),
        key_out,
        value_out,
        c.ring,
        c.ring_from,
    )
    new = 0
    for row, (start, stop) in enumerate(spans):
        part = slice(out_rows[row], out_rows[row] + stop)
        ring = c.ring[int(c.slots[row])].cpu() if c.kernels.fmt.window else None
        stored = packed.load_sequence(c.kernels.fmt, c.pages.cpu(), c.table[row].cpu(), start, ring)
        turn = random_hadamard(64, 0).T if rotate else torch.eye(64)
        for found, context, own in ((key_out, stored[0] @ turn, key), (value_out, stored[1] @ turn, value)):
            expected = torch.cat([context.transpose(0, 1), own[new : new + stop - start].float().cpu()])
            torch.testing.assert_close(found[part].float().cpu(), expected, atol=1e-2, rtol=1e-2)
        new += stop - start


@pytest.mark.parametrize(("method", "rotate"), [("int4", True), ("kivi-2", False)])
def test_what_prompts_need_can_be_compiled_ahead(method: str, rotate: bool) -> None:
    case(method, 64, rotate=rotate).kernels.warm(3)


def test_queries_are_rotated_on_the_way() -> None:
    c = case("int4", 128, rotate=True)
    key, value = new_tokens(c, (5,), seed=1)
    query = numbers(5, 2, 128, seed=2).bfloat16().to(DEVICE)
    rotated = torch.empty_like(query)
    c.kernels.store(key, value, c.pages, torch.arange(5, device=DEVICE), query, rotated)
    torch.testing.assert_close(
        rotated.float().cpu(), query.float().cpu() @ random_hadamard(128, 0), atol=2e-2, rtol=1e-2
    )


def test_shapes_that_are_not_served_are_refused() -> None:
    fmt = page_format("int4", 128)
    with pytest.raises(ValueError, match="32 query heads over 1 KV heads"):
        PackedKernels(fmt, Heads(32, 1, 128, torch.bfloat16, 1.0), DEVICE)
    with pytest.raises(ValueError, match="head size 64"):
        PackedKernels(fmt, Heads(4, 1, 64, torch.bfloat16, 1.0), DEVICE)
    with pytest.raises(ValueError, match="rotation at head size 96"):
        PackedKernels(page_format("int4", 96), Heads(4, 1, 96, torch.bfloat16, 1.0), DEVICE, 0)
    kernels = PackedKernels(fmt, Heads(8, 1, 128, torch.bfloat16, 1.0), DEVICE)
    plan = kernels.new_plan(1)
    one, three = torch.zeros(1), torch.zeros(3, 8, 128)
    with pytest.raises(ValueError, match="3 query tokens"):
        kernels.decode(plan, three, one, one, torch.ones(1), three)


@pytest.mark.skipif(CUDA, reason="they are compiled for this GPU by the other tests")
def test_the_compiler_takes_what_the_interpreter_took() -> None:
    script = Path(__file__).with_name("compile_kernels.py")
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), "int4+rotate:128", "kivi-2:96", "eviction:1", "eviction:16"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for kernel in ("store", "append", "pack", "ring", "dequantise", "plan", "balanced", "static", "combine"):
        assert f"{kernel}_kernel" in done.stdout
    for name in ("_shift", "_score", "_compact", "_add_start"):
        assert done.stdout.count(f"{name}: ") >= 2
