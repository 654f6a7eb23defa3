"""What a model's folder says about it before any weight is read: shape, lengths, dtype, and a digest."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvload.errors import UsageError

CONFIG_LIMIT = 16 * 2**20
SAMPLED_BYTES = 2**20
"""Bytes of each end of a weight file that enter the digest: reading 100 GB would take longer than the start itself."""


@dataclass(frozen=True)
class ModelFacts:
    """The numbers of a model's ``config.json``; None where it does not say.

    Attributes:
        folder: where it lies on disk; None for a model that is not on disk yet.
        layers, query_heads, kv_heads, head_size: of the attention.
        latent: whether keys and values are stored as one latent vector (MLA): then no figure per KV head applies.
        max_positions: longest context it was made for.
        dtype: of the weights, as in the configuration.
        digest: over the configuration and a sample of every weight file.
    """

    name: str
    folder: Path | None = None
    layers: int | None = None
    query_heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    vocab_size: int | None = None
    max_positions: int | None = None
    dtype: str | None = None
    latent: bool = False
    architecture: str | None = None
    digest: str | None = None


def read(model: str) -> ModelFacts:
    """Describe a model given as a folder or as a name of the Hugging Face hub.

    A hub model that is already in the local cache is described from there; one that is not gives its name alone, and
    the engine fetches it.

    Raises:
        UsageError: it names a folder that is none, or one without a readable ``config.json``.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        looks_like_path = model.startswith(("/", "./", "../", "~")) or folder.exists() or model.count("/") > 1
        if looks_like_path:
            raise UsageError("there is no model folder", where=model, hint="give a folder with config.json and weights")
        cached = _cached_folder(model)
        if cached is None:
            return ModelFacts(model)
        folder = cached
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError("not a model folder: it has no config.json", where=str(folder))
    config = _load(path)
    return ModelFacts(name=model, folder=folder.resolve(), digest=_digest(folder, path), **_shape(config))


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    text: dict[str, Any] = {**config, **nested} if isinstance(nested, dict) else config
    heads = _whole(text, "num_attention_heads", "n_head")
    hidden = _whole(text, "hidden_size", "n_embd")
    head_size = _whole(text, "head_dim") or (hidden // heads if hidden and heads else None)
    architectures = config.get("architectures")
    dtype = text.get("dtype") or text.get("torch_dtype")
    return {
        "layers": _whole(text, "num_hidden_layers", "n_layer"),
        "query_heads": heads,
        "kv_heads": _whole(text, "num_key_value_heads") or heads,
        "head_size": head_size,
        "vocab_size": _whole(text, "vocab_size"),
        "max_positions": _whole(text, "max_position_embeddings", "n_positions"),
        "dtype": dtype if isinstance(dtype, str) else None,
        "latent": "kv_lora_rank" in text,
        "architecture": architectures[0] if isinstance(architectures, list) and architectures else None,
    }


def _whole(values: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = values.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise UsageError("the file is too large for a model's configuration", where=str(path))
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise UsageError("the file holds no JSON object", where=str(path))
    return value


def _digest(folder: Path, config: Path) -> str:
    digest = hashlib.sha256(config.read_bytes())
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLED_BYTES))
            file.seek(max(0, size - SAMPLED_BYTES))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()[:32]


def _cached_folder(model: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError as error:
        raise UsageError("neither a folder nor a name of the Hugging Face hub", where=model) from error
    return Path(found).parent if isinstance(found, str) else None
