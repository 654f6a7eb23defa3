"""Fixtures for the servers' tests: a state folder of their own, and servers that never outlive a test."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from kvload.servers.engines import base
from kvload.servers.launcher import LaunchEvent, LaunchRequest, launch
from kvload.servers.lifecycle import registry
from kvload.servers.lifecycle.registry import ServerEntry
from kvload.servers.lifecycle.stopping import stop


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """kvload's state in a temporary folder; whatever was launched there is stopped at the end."""
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    yield tmp_path / "state"
    for entry in registry.entries():
        stop(entry)


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in engine, installed as engine ``fake``."""
    spec = importlib.util.spec_from_file_location("kvload_fake_engine", Path(__file__).with_name("fake_engine.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kvload_fake_engine", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(base, "ENGINES", {**base.ENGINES, "fake": "kvload_fake_engine:FakeAdapter"})
    return module


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model's folder without weights: six layers, two KV heads of size 64."""
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


Starter = Callable[..., ServerEntry]


@pytest.fixture
def start(state_folder: Path, fake_engine: ModuleType, model_folder: Path) -> Starter:
    """Launches the stand-in engine with options of its own."""

    def run(
        *options: str, name: str | None = None, events: list[LaunchEvent] | None = None, **more: object
    ) -> ServerEntry:
        request = LaunchRequest(model=str(model_folder), engine="fake", engine_args=options, name=name, **more)  # type: ignore[arg-type]
        return launch(request, (events if events is not None else []).append)

    return run
