"""kvload's plugin in SGLang's own classes, on a CPU: its source is enough, no GPU and no kernel of its own is needed.

``$KVLOAD_SGLANG_SOURCE`` is a folder with the package ``sglang`` of release 0.5.17 and what it imports beside torch
(msgspec, pydantic, orjson, psutil, ...; what is missing is stood in for), or several, separated as in ``PYTHONPATH``;
``$KVLOAD_SGLANG_NEWER_SOURCE`` likewise one of release 0.5.23, which is only held against the contract.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = os.environ.get("KVLOAD_SGLANG_SOURCE")
NEWER = os.environ.get("KVLOAD_SGLANG_NEWER_SOURCE")
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(1200)
needs_source = pytest.mark.skipif(SOURCE is None, reason="KVLOAD_SGLANG_SOURCE names no source of SGLang")

EVICTION: tuple[dict[str, Any], ...] = (
    {"method": "snapkv", "budget": 64, "window": 16},
    {"method": "streamingllm", "start": 4, "recent": 40},
    {"method": "h2o", "budget": 64, "recent": 32},
)


def checked(script: str, source: str | None, method: dict[str, Any] | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source or "", str(ROOT)]), "TRITON_INTERPRET": "1"}
    if method is not None:
        env["KVLOAD_SGLANG_METHOD"] = json.dumps(method)
    path = Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_source
@pytest.mark.parametrize("method", EVICTION, ids=lambda method: str(method["method"]))
def test_evicting_requests_read_what_is_kept_and_lose_the_rest(method: dict[str, Any]) -> None:
    said = checked("eviction_checks.py", SOURCE, method)
    assert "lives: graphs False" in said
    assert "lives: graphs True" in said


@needs_source
@pytest.mark.parametrize("method", ["int8", "int4", "kivi-4", "k8v4", "k4v2"])
def test_packed_requests_read_what_the_reference_reads(method: str) -> None:
    said = checked("packed_checks.py", SOURCE, {"method": method})
    assert "requests: graphs False" in said
    assert "requests: graphs True" in said


@needs_source
def test_the_release_it_was_written_for_keeps_the_contract() -> None:
    said = json.loads(checked("contract_checks.py", SOURCE).splitlines()[-1])
    assert said["broken"] == {}


@pytest.mark.skipif(NEWER is None, reason="KVLOAD_SGLANG_NEWER_SOURCE names no source of SGLang")
def test_what_a_newer_release_does_not_keep_is_what_the_docs_say() -> None:
    said = json.loads(checked("contract_checks.py", NEWER).splitlines()[-1])
    assert said["version"] == "0.5.23"
    assert set(said["broken"]) == {
        "sglang.srt.server_args:add_attention_backend_choices",
        "sglang.srt.mem_cache.chunk_cache:ChunkCache.cache_finished_req",
    }


def test_an_sglang_of_another_release_ends_with_a_sentence() -> None:
    code = (
        "import sys, types; sys.modules['sglang'] = types.SimpleNamespace(__version__='0.5.23'); "
        "from kvload.servers.plugins.sglang import register; register()"
    )
    env = {**os.environ, "KVLOAD_SGLANG_METHOD": '{"method": "snapkv"}', "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "kvload: the method snapkv runs inside SGLang 0.5.17; this is 0.5.23. "
        "Use one of those, or start SGLang without the method"
    )
