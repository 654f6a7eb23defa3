"""Writes GGUF files from the format's definition, for tests."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

FLOAT32, FLOAT16 = 0, 1


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    kind = 8 if item and isinstance(item[0], str) else 5
    packed = b"".join(text(each) if kind == 8 else struct.pack("<i", each) for each in item)
    return struct.pack("<IIQ", 9, kind, len(item)) + packed


def write(path: Path, facts: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> Path:
    """``tensors``: name to type, shape (outermost first) and bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    head += b"".join(text(key) + value(item) for key, item in facts.items())
    offset, data = 0, b""
    for name, (kind, shape, content) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(shape)) + struct.pack("<IQ", kind, offset)
        padded = content + b"\0" * (-len(content) % 32)
        data += padded
        offset += len(padded)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


TOKENS = ["<|end|>", "<|start|>", *"abcdefgh", "ab", "cd", "abcd", "Ġ", "0", "1"]


def tiny_llama(seed: int = 0, **changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and weights (in llama.cpp's order of rows) of a Llama with two layers, four heads and two KV heads."""
    facts: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(TOKENS) - 2)],
        "tokenizer.ggml.merges": ["a b", "c d", "ab cd"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}",
    } | changes
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    weights = {"token_embd.weight": random(len(TOKENS), 32), "output_norm.weight": 1 + random(32)}
    for layer in range(2):
        shapes = {
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (48, 32),
            "ffn_up": (48, 32),
            "ffn_down": (32, 48),
        }
        weights |= {f"blk.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        weights |= {f"blk.{layer}.{name}.weight": 1 + random(32) for name in ("attn_norm", "ffn_norm")}
    return facts, weights


def as_float32(weights: dict[str, np.ndarray]) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    return {name: (FLOAT32, array.shape, array.tobytes()) for name, array in weights.items()}
