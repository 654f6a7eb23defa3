"""Models that cannot be served rightly are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvload.errors import UsageError
from kvload.servers.embedded.model.model import Model, load_model
from kvload.servers.embedded.model.support import context_limit
from tests.servers.embedded.tiny_models import COMMON, tiny_config


def load(folder: Path, config: dict[str, Any]) -> Model:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_model(
        str(folder),
        load_format="dummy",
        device=torch.device("cpu"),
        dtype=None,
        seed=3,
        on_progress=lambda _: None,
    )


REFUSED = {
    "MLA": {"model_type": "deepseek_v3"},
    "encoder-decoder": {"model_type": "t5"},
    "hybrid": {"model_type": "qwen3_next"},
    "linear_attention": {"model_type": "mamba"},
    "chunked_attention": {"model_type": "llama4_text"},
    "share keys and values": {"model_type": "gemma3n_text"},
    "_supports_attention_backend": {"model_type": "bloom"},
    "no causal language model": {"model_type": "vit"},
    "bidirectional": {**COMMON, "model_type": "gemma3_text", "use_bidirectional_attention": True},
    "dynamic rotary": {
        **COMMON,
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_with_its_reason(reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        load(tmp_path, REFUSED[reason])


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="configuration cannot be read"):
        load_model(
            str(tmp_path),
            load_format="auto",
            device=torch.device("cpu"),
            dtype=None,
            seed=0,
            on_progress=lambda _: None,
        )


def test_random_weights_repeat_and_extras_are_found(tmp_path: Path) -> None:
    config = tiny_config("gpt-oss").to_dict()
    first, second = load(tmp_path, config), load(tmp_path, config)
    pairs = zip(first.module.parameters(), second.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert [extra.sliding_window for extra in first.extras] == [6, None, 6]
    assert all(extra.sinks is not None and extra.sinks.shape == (4,) for extra in first.extras)
    assert (first.geometry.layers, first.geometry.query_heads, first.geometry.kv_heads) == (3, 4, 2)
    assert first.eos_ids == {2}
    assert first.context_limit == 256


def test_longrope_stays_below_the_original_limit() -> None:
    config = tiny_config("phi3")
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    assert context_limit(config) == 64
