"""A model folder out of a GGUF file: bfloat16 safetensors, configuration, tokenizer and chat template.

What is converted are Llama-like models with a byte-level BPE tokenizer whose way of splitting text is known here. The
folder holds the file's own numbers, dequantised and rounded to bfloat16: a 4-bit file stays a 4-bit model.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvload.errors import UsageError
from kvload.servers.gguf.dequantise import STORAGES, Floats, bfloat16_bits
from kvload.servers.gguf.reader import GgufFile, TensorInfo

WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""Tensors that stand outside the layers, and their names in transformers."""

IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLITS: Mapping[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "gpt-2": [BYTE_LEVEL],
    "default": [BYTE_LEVEL],
}
"""How text is cut before the merges, by the file's name for it (``tokenizer.ggml.pre``)."""

CONTROL_TOKEN = 3
"""A token's type among the file's that marks special ones."""

WRITE_ROWS = 1 << 22
"""Numbers written at once."""


def folder_of(path: Path, cache: Path, on_progress: Callable[[str], None] = lambda _: None) -> Path:
    """The model folder of a GGUF file, converted where that was not done before.

    Args:
        path: the file.
        cache: folder that model folders are kept in.
        on_progress: told what is being done.

    Raises:
        UsageError: the file cannot be read or converted; the message says which of its properties is in the way.
    """
    target = cache / _digest(path) / path.stem
    if (target / "config.json").is_file():
        return target
    on_progress(f"converting {path.name} to safetensors")
    convert(path, target)
    return target


def convert(path: Path, target: Path) -> None:
    """Write a model folder; it appears whole, or not at all.

    Raises:
        UsageError: as :func:`folder_of`, or the folder cannot be written.
    """
    file = GgufFile(path)
    check(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UsageError(f"the model folder cannot be written: {error}", where=str(target)) from error
    try:
        _write_weights(file, scratch / "model.safetensors")
        _write_tokenizer(file, scratch)
        # The configuration last: its presence says that the folder is whole.
        special = _special_ids(file)
        _save(scratch / "generation_config.json", {"_from_model_config": True, **special})
        _save(scratch / "config.json", _config(file) | special)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    except OSError as error:
        raise UsageError(f"the model folder cannot be written: {error}", where=str(target)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check(file: GgufFile) -> None:
    """Refuse what cannot be converted.

    Raises:
        UsageError: says what is in the way, and what can be done instead.
    """
    facts = file.facts
    architecture, tokenizer = facts.get("general.architecture"), facts.get("tokenizer.ggml.model")
    against = None
    if architecture != "llama":
        against = f"its architecture is {architecture}, and only llama is converted"
    elif tokenizer != "gpt2":
        against = f"its tokenizer is of the kind {tokenizer}, and only gpt2 (byte-level BPE) is converted"
    elif facts.get("tokenizer.ggml.pre", "default") not in SPLITS:
        known = ", ".join(SPLITS)
        against = f"its tokenizer splits text as {facts['tokenizer.ggml.pre']}, and only {known} are known"
    elif facts.get("llama.rope.scaling.type") not in {None, "none"}:
        against = "its rotary embedding is scaled"
    elif facts.get("llama.expert_count", 0):
        against = "it is a mixture of experts"
    foreign = sorted({tensor.kind for tensor in file} - set(STORAGES))
    if against is None and foreign:
        known = ", ".join(storage.name for storage in STORAGES.values())
        against = f"it stores tensors as type {foreign[0]}; converted are {known}"
    if against is not None:
        raise UsageError(
            f"the file cannot be converted: {against}",
            where=str(file.path),
            hint="give the model as a folder of safetensors, or start an engine that reads the file itself",
        )


def _digest(path: Path) -> str:
    """Of the file's name, size and both ends: whole files are gigabytes."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            digest.update(f"{path.name}\0{size}\0".encode())
            digest.update(opened.read(1 << 20))
            opened.seek(max(0, size - (1 << 20)))
            digest.update(opened.read(1 << 20))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return digest.hexdigest()[:16]


def _fact(file: GgufFile, name: str) -> Any:
    if name not in file.facts:
        raise UsageError(f"the file cannot be converted: it does not say its {name}", where=str(file.path))
    return file.facts[name]


def _heads(file: GgufFile) -> tuple[int, int]:
    heads = int(_fact(file, "llama.attention.head_count"))
    return heads, int(file.facts.get("llama.attention.head_count_kv", heads))


def _special_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {name: file.facts.get(f"tokenizer.ggml.{fact}_token_id") for name, fact in names.items()}
    return {name: int(value) for name, value in ids.items() if value is not None}


def _config(file: GgufFile) -> dict[str, Any]:
    heads, kv_heads = _heads(file)
    hidden = int(_fact(file, "llama.embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": any(tensor.name.endswith("attn_q.bias") for tensor in file),
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "head_dim": int(file.facts.get("llama.attention.key_length", hidden // heads)),
        "intermediate_size": int(_fact(file, "llama.feed_forward_length")),
        "num_hidden_layers": int(_fact(file, "llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": int(_fact(file, "llama.context_length")),
        # Stored as float32: 1e-5 comes as 9.99999974e-06.
        "rms_norm_eps": float(f"{_fact(file, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(file.facts.get("llama.rope.freq_base", 10_000.0)),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in file),
        "torch_dtype": "bfloat16",
        "vocab_size": len(_fact(file, "tokenizer.ggml.tokens")),
    }


def _target_name(tensor: TensorInfo, path: Path) -> str:
    if tensor.name in WHOLE:
        return WHOLE[tensor.name]
    parts = tensor.name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in IN_LAYER:
        return f"model.layers.{int(parts[1])}.{IN_LAYER[parts[2]]}.{parts[3]}"
    raise UsageError(f"the file cannot be converted: it has a tensor {tensor.name[:60]}", where=str(path))


def _values(file: GgufFile, tensor: TensorInfo) -> Floats:
    """A tensor's numbers, with the rows of queries and keys in transformers' order."""
    storage = STORAGES[tensor.kind]
    if tensor.shape[-1] % storage.elements:
        raise UsageError(
            f"no sound GGUF file: rows of {tensor.name[:60]} are not whole {storage.name} blocks", where=str(file.path)
        )
    blocks = tensor.elements // storage.elements
    values = storage.decode(file.bytes_of(tensor, blocks * storage.bytes).reshape(blocks, storage.bytes))
    values = values.reshape(tensor.shape)
    kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
    if kind in {"attn_q", "attn_k"}:
        values = _halves_apart(values, _heads(file)[0 if kind == "attn_q" else 1])
    return values


def _halves_apart(values: Floats, heads: int) -> Floats:
    """Rotary pairs are neighbours in llama.cpp's order of rows, and half a head apart in transformers'."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_weights(file: GgufFile, path: Path) -> None:
    """Safetensors, written by hand tensor by tensor: numpy has no bfloat16, and torch need not be there."""
    named = sorted((_target_name(tensor, file.path), tensor) for tensor in file)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in named:
        end = offset + 2 * tensor.elements
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for _, tensor in named:
            for part in _parts(_values(file, tensor)):
                out.write(bfloat16_bits(part).tobytes())
        out.flush()
        os.fsync(out.fileno())


def _parts(values: Floats) -> Iterator[Floats]:
    flat = values.reshape(-1)
    return (flat[start : start + WRITE_ROWS] for start in range(0, len(flat), WRITE_ROWS))


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    """``tokenizer.json`` as the tokenizers library reads it, and transformers' files beside it."""
    facts = file.facts
    tokens, kinds = _fact(file, "tokenizer.ggml.tokens"), facts.get("tokenizer.ggml.token_type", [])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": number, "content": tokens[number], **plain}
        for number, kind in enumerate(kinds)
        if kind == CONTROL_TOKEN and number < len(tokens)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [pair.split(" ", 1) for pair in _fact(file, "tokenizer.ggml.merges")],
    }
    splits = SPLITS[facts.get("tokenizer.ggml.pre", "default")]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }
    _save(folder / "tokenizer.json", tokenizer)
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {name: facts.get(f"tokenizer.ggml.{fact}_token_id") for name, fact in names.items()}
    special = {name: tokens[number] for name, number in ids.items() if number is not None and number < len(tokens)}
    _save(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(row["id"]): {"content": row["content"], **plain} for row in added},
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(_fact(file, "llama.context_length")),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = facts.get("tokenizer.chat_template")
    _save(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))


def _save(path: Path, what: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(what, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
