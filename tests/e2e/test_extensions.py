"""What those who add to kvload are promised: a method is one file, an engine one folder, and both are seen everywhere.

Each is a package of its own, installed beside kvload, that kvload finds by its entry point.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

METHOD = '''
"""Half precision, whatever the model computes in."""
from dataclasses import dataclass

import torch

from kvload.servers.catalogue.methods import Method
from kvload.servers.embedded.compression.base import PageShape, TokenMethod
from kvload.servers.kernels.layout import Field


@dataclass(frozen=True)
class Half(TokenMethod):
    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        return (Field("data", torch.float16, (shape.tokens, shape.heads, shape.head_dim)),)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x.half(),)

    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        return parts[0].to(dtype)


METHOD = Method(
    name="half",
    title="Half precision",
    summary="float16",
    explanation="Two bytes a number.",
    paper="IEEE 754",
    keeps_exact="nothing",
    claim=lambda stored: 4.0 * stored.head_dim,
    implementation="toy_method:Half",
)
'''

ENGINE = '''
"""An engine that plays at being one: kvload's mock server."""
import sys
from collections.abc import Mapping

from kvload.servers.engines.base import Adapter, Build, LaunchPlan, LaunchRequest, Offer
from kvload.servers.engines.metrics import EngineMetrics
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts


class Toy(Adapter):
    name = "toy"
    metrics = EngineMetrics("toy:", {})

    def find(self, python: str | None, env: Mapping[str, str], machine: Machine) -> Build:
        return Build("toy", sys.executable, "0.1", "cpu")

    def plan(
        self, request: LaunchRequest, port: int, build: Build, model: ModelFacts, machine: Machine
    ) -> LaunchPlan:
        command = (build.python, "-u", "-m", "kvload", "mock", "--port", str(port))
        return LaunchPlan(command=command, env={}, served_name="mock")

    def offers(self) -> Mapping[str, Offer]:
        return {"pretence": Offer("toy", "--pretend", 512.0)}
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path with both packages and their entry points, as pip would leave them."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_method.py").write_text(METHOD, encoding="utf-8")
    (folder / "toy_engine").mkdir()
    (folder / "toy_engine" / "__init__.py").write_text(ENGINE, encoding="utf-8")
    info = folder / "toys-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 0.1\n", encoding="utf-8")
    points = "[kvload.methods]\nhalf = toy_method:METHOD\n[kvload.engines]\ntoy = toy_engine:Toy\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small Llama without weights."""
    folder = tmp_path / "small"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 256,
        "max_position_embeddings": 1024,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


PACE = ("--no-calibrate", "--arrivals", "constant", "--rate", "10")


class Toys:
    """``kvload ARGUMENTS`` with the packages installed."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self.environ = environ | {"PYTHONPATH": path}

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "kvload", *map(str, arguments)],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def toys(package: Path, environ: dict[str, str]) -> Iterator[Toys]:
    """Servers it launched are stopped at the end."""
    kvload = Toys(package, environ)
    yield kvload
    kvload("stop", "--all")


def trace(folder: Path) -> Path:
    rows = [{"prompt": [1 + index, 2, 3], "max_tokens": 4} for index in range(3)]
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def manifest(run: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return read


def test_a_method_in_one_file(toys: Toys, model: Path, tmp_path: Path) -> None:
    shown = json.loads(toys("methods", "half", "--json"))
    assert shown["offers"] == [{"engine": "embedded", "setting": "half", "bytes_per_token": 512.0, "note": ""}]
    toys("launch", model, "--engine", "embedded", "--method", "half", "--load-format", "dummy", "--name", "one")
    toys("replay", trace(tmp_path), "--server", "one", "--out", tmp_path / "run", *PACE)
    servers = manifest(tmp_path / "run")["servers"]
    assert isinstance(servers, list)
    (server,) = servers
    assert server["method"] == "half"
    assert server["bytes_per_token"] == 2 * 1 * 4 * 32


def test_an_engine_in_one_folder(toys: Toys, model: Path, tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(toys("methods", "--json"))}
    assert rows["pretence"]["offers"][0]["engine"] == "toy"
    toys("launch", model, "--engine", "toy", "--name", "two")
    toys("replay", trace(tmp_path), "--server", "two", "--out", tmp_path / "run", *PACE)
    servers = manifest(tmp_path / "run")["servers"]
    assert isinstance(servers, list)
    (server,) = servers
    assert (server["name"], server["engine"], server["engine_version"]) == ("two", "toy", "0.1")
