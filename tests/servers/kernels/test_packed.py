"""The torch reference of packed pages, held against the embedded engine's own codecs and against plain attention."""

import pytest
import torch
from torch.nn import functional

from kvload.servers.embedded.compression.int4 import Int4
from kvload.servers.embedded.compression.int8 import Int8
from kvload.servers.embedded.compression.kivi import Kivi
from kvload.servers.embedded.compression.leankv import LeanKV
from kvload.servers.kernels import packed
from kvload.servers.kernels.formats import HEAD_SIZES, PACKED_METHODS, PAGE_TOKENS, packed_tokens, page_format

HEADS = 2


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(method: str, size: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values, and what a sequence of them reads back as, all ``(heads, tokens, size)``; no ring."""
    fmt = page_format(method, size)
    key, value = numbers(tokens, HEADS, size), numbers(tokens, HEADS, size, seed=1)
    pages = torch.zeros(8, HEADS, fmt.run_bytes, dtype=torch.uint8)
    row = torch.tensor([5, 2, 7, 0])
    if fmt.window:
        ring = torch.zeros(HEADS, 2, 128, size)
        packed.store_windowed(fmt, pages, row, ring, 0, key, value)
    else:
        position = torch.arange(tokens)
        packed.store_tokens(fmt, pages, row[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS, key, value)
    found = packed.load_sequence(fmt, pages, row, tokens, ring_from=tokens if fmt.window else 0)
    return key.transpose(0, 1), value.transpose(0, 1), *found


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_are_what_the_layout_says(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 128), generator=torch.Generator().manual_seed(0))
    data = packed.to_words(codes, bits)
    assert data.shape == (3, 128 * bits // 8)
    words = 128 * bits // 16
    for token, channel in ((0, 0), (1, 37), (2, 127)):
        stream, word = divmod(channel, words)
        value = int(data[token, 2 * word]) | int(data[token, 2 * word + 1]) << 8
        assert (value >> (bits * stream)) % 2**bits == int(codes[token, channel])
    assert torch.equal(packed.from_words(data, bits), codes.float())


@pytest.mark.parametrize("size", HEAD_SIZES)
@pytest.mark.parametrize("method", ["int8", "int4", "k8v4", "k4v2"])
def test_tokens_read_back_as_from_the_embedded_engine(method: str, size: int) -> None:
    key, value, read_key, read_value = stored(method, size, 130)
    if method in ("int8", "int4"):
        codec = Int8() if method == "int8" else Int4()
        expected = [codec.decode(codec.encode(x), torch.float32) for x in (key, value)]
    else:
        level = LeanKV.high_precision if method == "k8v4" else LeanKV.low_precision
        words, scale, value_words, value_scale = level.encode(key, value)
        expected = [level.decode_key(words, scale), level.decode_value(value_words, value_scale)]
    assert torch.equal(read_key, expected[0])
    assert torch.equal(read_value, expected[1])


def in_pages(rows: torch.Tensor) -> torch.Tensor:
    turned = rows.transpose(0, 1)
    return turned.reshape(-1, PAGE_TOKENS, *turned.shape[1:])


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("bits", [4, 2])
def test_full_pages_of_kivi_read_back_as_from_the_embedded_engine(bits: int, size: int) -> None:
    key, value, read_key, read_value = stored(f"kivi-{bits}", size, 128)
    codec = Kivi(bits=bits, group=64)
    keys = in_pages(key)
    expected = codec.decode_keys(codec.encode_keys(keys, prompt=True))
    assert torch.equal(in_pages(read_key), expected)
    expected = codec.decode_values(codec.encode_values(value.transpose(0, 1), prompt=True))
    assert torch.equal(read_value.transpose(0, 1), expected)


@pytest.mark.parametrize(
    ("method", "size", "expected"),
    [
        ("int8", 128, 264),
        ("int4", 128, 136),
        ("k8v4", 128, 204),
        ("k4v2", 128, 120),
        ("kivi-4", 128, 144),
        ("kivi-2", 128, 80),
        ("kivi-4", 64, 72),
    ],
)
def test_bytes_of_a_token(method: str, size: int, expected: float) -> None:
    assert page_format(method, size).token_bytes == expected


@pytest.mark.parametrize("method", PACKED_METHODS)
def test_every_field_is_aligned(method: str) -> None:
    for size in HEAD_SIZES:
        fmt = page_format(method, size)
        offsets = (fmt.value_offset, fmt.key_side_offset, fmt.value_side_offset, fmt.run_bytes)
        assert all(offset % 16 == 0 for offset in offsets)


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="no packed page format 'int3'"):
        page_format("int3", 128)
    with pytest.raises(ValueError, match="head size"):
        page_format("int4", 40)


def test_a_constant_head_is_exact() -> None:
    for method in PACKED_METHODS:
        fmt = page_format(method, 64)
        pages = torch.zeros(1, 1, fmt.run_bytes, dtype=torch.uint8)
        for constant in (0.0, -1.5):
            x = torch.full((PAGE_TOKENS, 1, 64), constant)
            if fmt.window:
                packed.pack_pages(fmt, pages, torch.tensor([0]), x[None], x[None])
            else:
                packed.store_tokens(fmt, pages, torch.arange(PAGE_TOKENS), x, x)
            for read in packed.load_pages(fmt, pages, torch.tensor([0])):
                torch.testing.assert_close(read[0, 0], x[:, 0], rtol=1e-6, atol=0)


def test_the_window_holds_the_newest_64_to_127_tokens() -> None:
    for length in range(1, 600):
        packed_now = packed_tokens(length)
        assert packed_now % PAGE_TOKENS == 0
        assert length - packed_now <= 127
        assert packed_now == 0 or length - packed_now >= 64
    assert packed_tokens(300, ring_from=256) == 256
    assert packed_tokens(400, ring_from=256) == 320


@pytest.mark.parametrize("method", ["kivi-4", "kivi-2"])
def test_windowed_stores_do_not_depend_on_chunks(method: str) -> None:
    fmt = page_format(method, 64)
    key, value = numbers(300, HEADS, 64), numbers(300, HEADS, 64, seed=1)
    row = torch.arange(5)
    found = []
    for cuts in ((300,), (1, 64, 127, 200, 300), tuple(range(1, 301))):
        pages = torch.zeros(5, HEADS, fmt.run_bytes, dtype=torch.uint8)
        ring = torch.zeros(HEADS, 2, 128, 64)
        start = 0
        for stop in cuts:
            packed.store_windowed(fmt, pages, row, ring, start, key[start:stop], value[start:stop])
            start = stop
        found.append((pages, ring))
    for pages, ring in found[1:]:
        assert torch.equal(pages, found[0][0])
        assert torch.equal(ring, found[0][1])
    read, _ = packed.load_sequence(fmt, *found[0][:1], row, 300, found[0][1])
    assert torch.equal(read[:, 192:], key[192:].transpose(0, 1))
    assert not torch.equal(read[:, :192], key[:192].transpose(0, 1))


def test_attention_is_torchs() -> None:
    query, key, value = numbers(3, 4, 64), numbers(2, 70, 64, seed=1), numbers(2, 70, 64, seed=2)
    mask = torch.ones(3, 70, dtype=torch.bool).tril(67)
    expected = functional.scaled_dot_product_attention(
        query.transpose(0, 1), key.repeat_interleave(2, 0), value.repeat_interleave(2, 0), attn_mask=mask, scale=0.125
    )
    torch.testing.assert_close(packed.attend(query, key, value, 0.125), expected.transpose(0, 1))
