"""GGUF files against the format's definition: blocks decoded number by number, a model run by hand, damaged files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.errors import UsageError
from kvload.servers.gguf.convert import convert, folder_of
from kvload.servers.gguf.dequantise import STORAGES, bfloat16_bits
from kvload.servers.gguf.reader import GgufFile
from tests.servers.gguf.gguf_files import TOKENS, as_float32, tiny_llama, write

Block = bytes


def half(block: Block, place: int) -> float:
    return float(struct.unpack_from("<e", block, place)[0])


def plain_q4_0(block: Block) -> list[float]:
    return [half(block, 0) * (((block[2 + i % 16] >> (4 * (i // 16))) & 15) - 8) for i in range(32)]


def plain_q4_1(block: Block) -> list[float]:
    return [half(block, 0) * ((block[4 + i % 16] >> (4 * (i // 16))) & 15) + half(block, 2) for i in range(32)]


def plain_q5_0(block: Block) -> list[float]:
    fifth = struct.unpack_from("<I", block, 2)[0]
    codes = [((block[6 + i % 16] >> (4 * (i // 16))) & 15) | (((fifth >> i) & 1) << 4) for i in range(32)]
    return [half(block, 0) * (code - 16) for code in codes]


def plain_q5_1(block: Block) -> list[float]:
    fifth = struct.unpack_from("<I", block, 4)[0]
    codes = [((block[8 + i % 16] >> (4 * (i // 16))) & 15) | (((fifth >> i) & 1) << 4) for i in range(32)]
    return [half(block, 0) * code + half(block, 2) for code in codes]


def plain_q8_0(block: Block) -> list[float]:
    return [half(block, 0) * number for number in struct.unpack_from("<32b", block, 2)]


def six_bits(packed: Block, group: int) -> tuple[int, int]:
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    low, least = packed[group + 4] & 15, packed[group + 4] >> 4
    return low | ((packed[group - 4] >> 6) << 4), least | ((packed[group] >> 6) << 4)


def plain_k(block: Block, bits: int) -> list[float]:
    first = 16 if bits == 4 else 48
    found = []
    for group in range(8):
        scale, least = six_bits(block[4:16], group)
        for i in range(32):
            code = (block[first + 32 * (group // 2) + i] >> (4 * (group % 2))) & 15
            if bits == 5:
                code |= ((block[16 + i] >> group) & 1) << 4
            found.append(half(block, 0) * scale * code - half(block, 2) * least)
    return found


def plain_q6_k(block: Block) -> list[float]:
    found = []
    for place in range(256):
        side, inside = divmod(place, 128)
        quarter, i = divmod(inside, 32)
        low = (block[64 * side + 32 * (quarter % 2) + i] >> (4 * (quarter // 2))) & 15
        high = (block[128 + 32 * side + i] >> (2 * quarter)) & 3
        scale = struct.unpack_from("<b", block, 192 + place // 16)[0]
        found.append(half(block, 208) * scale * ((low | (high << 4)) - 32))
    return found


PLAIN: dict[str, Callable[[Block], list[float]]] = {
    "Q4_0": plain_q4_0,
    "Q4_1": plain_q4_1,
    "Q5_0": plain_q5_0,
    "Q5_1": plain_q5_1,
    "Q8_0": plain_q8_0,
    "Q4_K": lambda block: plain_k(block, 4),
    "Q5_K": lambda block: plain_k(block, 5),
    "Q6_K": plain_q6_k,
}
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


@pytest.mark.parametrize("name", PLAIN)
def test_blocks(name: str) -> None:
    storage = next(each for each in STORAGES.values() if each.name == name)
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (5, storage.bytes), dtype=np.uint8)
    for place in SCALES.get(name, (0,)):
        blocks[:, place : place + 2] = rng.standard_normal((5, 1)).astype(np.float16).view(np.uint8)
    expected = [PLAIN[name](block.tobytes()) for block in blocks]
    assert np.allclose(storage.decode(blocks), expected, rtol=1e-6, atol=1e-6)


def test_unpacked_kinds_are_as_they_are() -> None:
    numbers = np.array([[1.5], [-3.25], [0.0]], dtype=np.float32)
    assert (STORAGES[0].decode(numbers.view(np.uint8)) == numbers).all()
    assert (STORAGES[1].decode(numbers.astype(np.float16).view(np.uint8)) == numbers).all()
    bits = bfloat16_bits(numbers)
    assert (STORAGES[30].decode(bits.view(np.uint8)) == numbers).all()
    # 1 + 2**-8 lies halfway between two of bfloat16: to the even one.
    assert bfloat16_bits(np.array([1 + 2**-8, 1 + 3 * 2**-8], dtype=np.float32)).tolist() == [0x3F80, 0x3F82]


def rotated(x: np.ndarray, base: float) -> np.ndarray:
    """Rotary embedding of ``(tokens, heads, size)`` as llama.cpp has it: neighbours are pairs."""
    tokens, _, size = x.shape
    angle = np.arange(tokens)[:, None] * base ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


def by_hand(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The tiny Llama's logits, from its definition and the file's own order of rows."""

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight)

    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    x = wide["token_embd.weight"][ids]
    count = len(ids)
    for layer in range(2):
        part = {name.split(".")[2]: array for name, array in wide.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x, part["attn_norm"])
        query = rotated((h @ part["attn_q"].T).reshape(count, 4, 8), 10000.0)
        key = rotated((h @ part["attn_k"].T).reshape(count, 2, 8), 10000.0).repeat(2, axis=1)
        value = (h @ part["attn_v"].T).reshape(count, 2, 8).repeat(2, axis=1)
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(8)
        scores = np.where(np.tril(np.ones((count, count), dtype=bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), value).reshape(count, 32)
        x = x + mixed @ part["attn_output"].T
        h = norm(x, part["ffn_norm"])
        gate = h @ part["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ part["ffn_up"].T)) @ part["ffn_down"].T
    logits: np.ndarray = norm(x, wide["output_norm.weight"]) @ wide["token_embd.weight"].T
    return logits


def test_a_converted_model_computes_what_the_file_says(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    facts, weights = tiny_llama()
    # As the folder will have them: rounded to bfloat16.
    weights = {name: (bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32) for name, x in weights.items()}
    file = write(tmp_path / "tiny.gguf", facts, as_float32(weights))
    folder = folder_of(file, tmp_path / "cache")
    assert folder.name == "tiny"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [3, 4, 7, 1, 12, 9]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits - by_hand(weights, ids)).max() < 1e-4
    assert model.config.tie_word_embeddings
    assert (model.config.eos_token_id, model.config.bos_token_id, model.config.pad_token_id) == (0, 1, 0)
    assert folder_of(file, tmp_path / "cache") == folder


def test_the_tokenizer_splits_and_merges(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    facts, weights = tiny_llama()
    folder = folder_of(write(tmp_path / "tiny.gguf", facts, as_float32(weights)), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = tokenizer.convert_ids_to_tokens(tokenizer("abcdab01<|end|>").input_ids)
    assert words == ["abcd", "ab", "0", "1", "<|end|>"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "<|start|>ab<|end|>"
    assert len(tokenizer) == len(TOKENS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "gemma"}, "its architecture is gemma"),
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is of the kind llama"),
        ({"tokenizer.ggml.pre": "deepseek"}, "splits text as deepseek"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary embedding is scaled"),
    ],
)
def test_what_cannot_be_converted_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    facts, weights = tiny_llama(**change)
    with pytest.raises(UsageError, match=said):
        convert(write(tmp_path / "tiny.gguf", facts, as_float32(weights)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_nobody_knows_and_kinds_nobody_reads(tmp_path: Path) -> None:
    facts, weights = tiny_llama()
    tensors = as_float32(weights)
    extra = write(tmp_path / "a.gguf", facts, {**tensors, "blk.0.magic.weight": (0, (1,), b"\0" * 4)})
    with pytest.raises(UsageError, match=r"a tensor blk\.0\.magic\.weight"):
        convert(extra, tmp_path / "out")
    with pytest.raises(UsageError, match="as type 99"):
        convert(write(tmp_path / "b.gguf", facts, {**tensors, "output.weight": (99, (1,), b"")}), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    facts, weights = tiny_llama()
    whole = write(tmp_path / "whole.gguf", facts, as_float32(weights)).read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(whole), len(whole) // 60)]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError):
            convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    "head",
    [
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**40),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77),
        b"GGML" + b"\0" * 60,
    ],
)
def test_lengths_that_cannot_be(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(head + b"\0" * 64)
    with pytest.raises(UsageError, match="no sound GGUF file"):
        GgufFile(path)
