"""The embedded engine through the launcher: real processes, verified against its own baseline."""

import json
from pathlib import Path

import pytest

from kvload.servers.launcher import LaunchRequest, launch, stop
from kvload.servers.lifecycle import registry
from kvload.servers.watch.scrape import sample_once


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The configuration of a small Llama; its weights are made up by the engine."""
    folder = tmp_path / "small"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_compressed_server_is_verified_against_a_baseline_that_is_kept(model: Path, state_folder: Path) -> None:
    request = LaunchRequest(
        model=str(model),
        engine="embedded",
        method="int8",
        load_format="dummy",
        kv_memory=2**24,
        verify=True,
        engine_args=("--dtype", "float32"),
    )
    notes: list[str] = []
    entry = launch(request, lambda event: notes.append(event.text) if event.kind == "note" else None)
    assert registry.find() == entry
    assert entry.info.method == "int8"
    assert entry.info.bytes_per_token == 3 * 2 * (2 * 32 + 8)
    assert entry.info.prefix_cache == "off"
    assert entry.vocab_size == 512
    verified = entry.info.verified
    assert verified is not None
    assert verified["ok"]
    assert verified["pool"]["ratio"] == pytest.approx(4 * 64 / 72, rel=0.02)
    assert verified["soundness"]["checked"]
    assert verified["soundness"]["lost"] < 0.1
    assert any("no baseline is known" in note for note in notes)
    assert sample_once(entry.address).pool_tokens == entry.info.pool_tokens
    assert stop(entry).was_running
    assert len(list((state_folder / "baselines").glob("embedded-*.json"))) == 1
