"""Settings of vLLM and SGLang: what they claim, where they are refused, and the command lines they lead to."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import read_method
from kvload.servers.engines import installed_engine
from kvload.servers.engines.base import Build, LaunchRequest
from kvload.servers.engines.installed_engine import accepted_dtypes
from kvload.servers.engines.scheduling import limits
from kvload.servers.engines.settings import claim_of, obstacle, pick
from kvload.servers.engines.sglang.adapter import SglangAdapter
from kvload.servers.engines.sglang.settings import SETTINGS as SGLANG_SETTINGS
from kvload.servers.engines.vllm.adapter import VllmAdapter
from kvload.servers.engines.vllm.settings import SETTINGS as VLLM_SETTINGS
from kvload.servers.host.devices import AMD, NVIDIA
from kvload.servers.host.installed import Installed
from kvload.servers.host.machine import Gpu, Machine
from kvload.servers.host.model_facts import ModelFacts, read

LLAMA_8B = ModelFacts(
    "m", Path("/models/m"), layers=32, query_heads=32, kv_heads=8, head_size=128, vocab_size=4096, dtype="bfloat16"
)
HOPPER = Gpu(0, "NVIDIA H200", (9, 0), 143771, 0)
GPU_MACHINE = Machine((HOPPER,), "x", 8, frozenset({"avx512f"}), 2**37)
CPU_MACHINE = Machine((), "x", 2, frozenset({"avx512f"}), 2**35)
OLD_CPU_MACHINE = Machine((), "x", 2, frozenset({"avx2"}), 2**35)
VLLM_GPU = Build("vllm", "/v/python", "0.26.0", "cuda", (0, 26, 0))
VLLM_CPU = Build("vllm", "/v/python", "0.32.0+cpu", "cpu", (0, 32, 0))
SGLANG = Build("sglang", "/s/python", "0.5.17", "cuda", (0, 5, 17))

BYTES_128 = {
    "none": 512,
    "fp8-e4m3": 256,
    "fp8-e5m2": 256,
    "int8-per-token-head": 264,
    "fp8-per-token-head": 264,
    "int4-per-token-head": 136,
    "turboquant-k8v4": 196,
    "turboquant-4bit": 134,
    "turboquant-k3v4": 118,
    "turboquant-3bit": 102,
    "nvfp4": 144,
    "nvfp4-4over6": 144,
    "ultraquant-4bit": 136,
}
"""Published bytes per token, layer and KV head at head size 128 (vLLM's own documentation and pull requests)."""

POOLS_SEEN = {
    "fp8-e4m3": 912_560 / 456_528,
    "int8-per-token-head": 885_408 / 456_528,
    "turboquant-k8v4": 992_544 / 456_528,
    "turboquant-4bit": 1_289_632 / 456_528,
    "int4-per-token-head": 1_718_720 / 456_528,
}
"""Pool sizes over the baseline's that vLLM 0.26 reported on an H200 for 32 layers, 8 KV heads of 128."""


@pytest.mark.parametrize("method", BYTES_128)
def test_bytes_per_token(method: str) -> None:
    claim = VLLM_SETTINGS[method].bytes_per_token
    assert (512 if claim is None else claim(128)) == BYTES_128[method]


def test_every_row_has_its_bytes_checked() -> None:
    assert set(BYTES_128) == {name for name, row in VLLM_SETTINGS.items() if not row.plugin}


@pytest.mark.parametrize("method", POOLS_SEEN)
def test_claims_agree_with_pools_seen_on_a_gpu(method: str) -> None:
    claim = claim_of(VLLM_SETTINGS[method], LLAMA_8B, 2)
    assert claim is not None
    assert claim.ratio == pytest.approx(POOLS_SEEN[method], rel=0.002)
    assert claim.baseline_bytes_per_token == 131072


def test_sglang_claims() -> None:
    ratios = {
        name: claim.ratio for name, row in SGLANG_SETTINGS.items() if (claim := claim_of(row, LLAMA_8B, 2)) is not None
    }
    assert ratios["fp8-e4m3"] == pytest.approx(924_882 / 462_441)
    assert ratios["fp4-mx"] == pytest.approx(512 / 144)
    assert ratios["mxfp8"] == pytest.approx(512 / 264)


@pytest.mark.parametrize(
    ("method", "build", "machine", "model", "words"),
    [
        ("nvfp4", VLLM_GPU, GPU_MACHINE, LLAMA_8B, "compute capability 10.0; NVIDIA H200 has 9.0"),
        ("int8-per-token-head", VLLM_CPU, CPU_MACHINE, LLAMA_8B, "corrupts the cache"),
        ("fp8-e4m3", VLLM_CPU, OLD_CPU_MACHINE, LLAMA_8B, "AVX-512"),
        ("fp8-e4m3", VLLM_CPU, CPU_MACHINE, replace(LLAMA_8B, head_size=80), "divisible by 32"),
        ("turboquant-4bit", VLLM_GPU, GPU_MACHINE, replace(LLAMA_8B, layers=4), "leaves 4 layers"),
        ("nvfp4-4over6", replace(VLLM_GPU, dtypes=frozenset({"auto"})), GPU_MACHINE, LLAMA_8B, "does not know"),
        ("int8-per-token-head", replace(VLLM_GPU, version="0.19.0", release=(0, 19)), GPU_MACHINE, LLAMA_8B, "0.26 on"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(
    method: str, build: Build, machine: Machine, model: ModelFacts, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        VllmAdapter().plan(LaunchRequest(method=method), 8000, build, model, machine)
    assert words in str(caught.value)
    possible = str(caught.value).split("it can do here: ")[1].split(";")[0].split(", ")
    assert "none" in possible
    assert method not in possible
    for name in possible:
        assert obstacle(VLLM_SETTINGS[name], build, model, machine) is None


def test_on_a_hopper_vllm_can_do_all_but_blackwells_and_amds() -> None:
    possible = [n for n, r in VLLM_SETTINGS.items() if obstacle(r, VLLM_GPU, LLAMA_8B, GPU_MACHINE) is None]
    assert set(VLLM_SETTINGS) - set(possible) == {"nvfp4", "nvfp4-4over6", "ultraquant-4bit"}


def test_unknown_methods_name_the_known_and_raw_passes_through() -> None:
    with pytest.raises(UsageError, match="vllm has no method 'gear-4'"):
        pick(VLLM_SETTINGS, read_method("gear-4"), "vllm")
    plan = VllmAdapter().plan(LaunchRequest(method="raw:future_dtype"), 8000, VLLM_GPU, LLAMA_8B, GPU_MACHINE)
    assert plan.command[plan.command.index("--kv-cache-dtype") + 1] == "future_dtype"
    assert plan.claim is None
    known = VllmAdapter().plan(LaunchRequest(method="raw:nvfp4"), 8000, VLLM_GPU, LLAMA_8B, GPU_MACHINE)
    assert known.claim is not None
    plain = VllmAdapter().plan(LaunchRequest(method="raw:bfloat16"), 8000, VLLM_GPU, LLAMA_8B, GPU_MACHINE)
    assert not plain.compresses


@pytest.mark.parametrize(("release", "is_asked"), [((), False), ((0, 25, 1), False), ((0, 26, 0), True)])
def test_a_vllm_that_can_tell_each_requests_queue_time_is_asked_to(release: tuple[int, ...], is_asked: bool) -> None:
    build = replace(VLLM_GPU, release=release)
    plan = VllmAdapter().plan(LaunchRequest(), 8123, build, LLAMA_8B, GPU_MACHINE)
    assert ("--enable-per-request-metrics" in plan.command) is is_asked
    assert ("--enable-prompt-tokens-details" in plan.command) is is_asked


def test_vllms_command_line() -> None:
    request = LaunchRequest(
        method="fp8-e4m3", load_format="dummy", max_model_len=4096, kv_memory=2**30, engine_args=("--seed", "3")
    )
    plan = VllmAdapter().plan(request, 8123, VLLM_GPU, LLAMA_8B, GPU_MACHINE)
    assert plan.command == (
        *("/v/python", "-m", "vllm.entrypoints.cli.main", "serve", "/models/m", "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", "8123", "--load-format", "dummy", "--kv-cache-dtype", "fp8_e4m3"),
        *("--max-model-len", "4096", "--kv-cache-memory-bytes", str(2**30)),
        *("--generation-config", "vllm", "--enable-per-request-metrics", "--enable-prompt-tokens-details"),
        *("--seed", "3"),
    )
    assert plan.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert plan.env["HF_HUB_OFFLINE"] == "1"
    assert plan.prefix_cache == "reset"


@pytest.mark.parametrize("given", [("--api-key", "planted"), ("--api-key=planted",)])
def test_vllm_is_given_its_key_where_no_process_list_shows_it(given: tuple[str, ...]) -> None:
    request = LaunchRequest(engine_args=("--seed", "3", *given, "--port-offset", "1"))
    plan = VllmAdapter().plan(request, 1, VLLM_GPU, LLAMA_8B, GPU_MACHINE)
    assert plan.command[-4:] == ("--seed", "3", "--port-offset", "1")
    assert plan.env["VLLM_API_KEY"] == "planted"


def test_sglang_says_that_its_key_can_be_seen() -> None:
    request = LaunchRequest(engine_args=("--api-key", "planted"))
    notes = SglangAdapter().plan(request, 1, SGLANG, LLAMA_8B, GPU_MACHINE).notes
    assert any("can read it" in note for note in notes)
    assert not any("planted" in note for note in notes)


def test_vllms_cpu_build_gets_a_bounded_cache_and_no_compilation() -> None:
    plan = VllmAdapter().plan(LaunchRequest(), 1, VLLM_CPU, LLAMA_8B, CPU_MACHINE)
    assert "--enforce-eager" in plan.command
    assert plan.command[plan.command.index("--kv-cache-memory-bytes") + 1] == str(512 * 2**20)
    assert "VLLM_CPU_KVCACHE_SPACE" in plan.unset


def test_development_endpoints_are_not_opened_to_the_network() -> None:
    plan = VllmAdapter().plan(LaunchRequest(host="::"), 1, VLLM_GPU, LLAMA_8B, GPU_MACHINE)
    assert "VLLM_SERVER_DEV_MODE" not in plan.env
    assert plan.prefix_cache == "on"
    off = LaunchRequest(engine_args=("--no-enable-prefix-caching",))
    assert VllmAdapter().plan(off, 1, VLLM_GPU, LLAMA_8B, GPU_MACHINE).prefix_cache == "off"


def test_sglangs_command_line() -> None:
    request = LaunchRequest(method="fp4-mx", max_model_len=4096, kv_memory=2**30)
    plan = SglangAdapter().plan(request, 8124, SGLANG, LLAMA_8B, GPU_MACHINE)
    tokens = int(2**30 / (32 * 8 * 144))
    assert plan.command == (
        *("/s/python", "-m", "sglang.launch_server", "--model-path", "/models/m", "--served-model-name", "m"),
        *("--host", "127.0.0.1", "--port", "8124", "--load-format", "auto", "--enable-metrics"),
        "--enable-cache-report",
        *("--kv-cache-dtype", "fp4_mx_block16", "--context-length", "4096", "--max-total-tokens", str(tokens)),
        *("--attention-backend", "triton"),
    )
    own = replace(request, engine_args=("--attention-backend", "torch_native"))
    command = SglangAdapter().plan(own, 8124, SGLANG, LLAMA_8B, GPU_MACHINE).command
    assert command.count("--attention-backend") == 1


def test_dtypes_are_read_from_the_installed_source(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "cache.py").write_text(
        'CacheDType = Literal[\n    "auto",\n    "fp8",\n    "nvfp4_4over6",\n]\nOther = Literal["x"]\n',
        encoding="utf-8",
    )
    assert accepted_dtypes(tmp_path, VllmAdapter.dtype_source, VllmAdapter.dtype_lists) == frozenset(
        {"auto", "fp8", "nvfp4_4over6"}
    )
    (tmp_path / "srt").mkdir()
    (tmp_path / "srt" / "server_args.py").write_text(
        '    kv_cache_dtype: A[\n        str,\n        Arg(\n            help=("x"),\n'
        '            choices=[\n                "auto",\n                "fp8_e4m3",\n            ],\n'
        "        ),\n    ]\n",
        encoding="utf-8",
    )
    assert accepted_dtypes(tmp_path, SglangAdapter.dtype_source, SglangAdapter.dtype_lists) == frozenset(
        {"auto", "fp8_e4m3"}
    )
    assert accepted_dtypes(tmp_path / "absent", VllmAdapter.dtype_source, VllmAdapter.dtype_lists) is None


def test_a_models_facts(model_folder: Path) -> None:
    facts = read(str(model_folder))
    assert (facts.layers, facts.kv_heads, facts.head_size, facts.vocab_size) == (6, 2, 64, 1000)
    assert facts.max_positions == 512
    (model_folder / "model.safetensors").write_bytes(b"other weights")
    assert read(str(model_folder)).digest != facts.digest
    with pytest.raises(UsageError, match="no model folder"):
        read("./absent/model")
    with pytest.raises(UsageError, match=r"no config\.json"):
        read(str(model_folder.parent))


def test_the_embedded_engine_runs_on_a_gpu_only_where_torch_was_built_for_one() -> None:
    torch = pytest.importorskip("torch")
    from kvload.servers.engines.embedded.adapter import EmbeddedAdapter

    built = EmbeddedAdapter().find(None, {}, GPU_MACHINE)
    assert built is not None
    assert built.device == ("cuda" if torch.version.cuda else "cpu")


@pytest.mark.parametrize(
    ("command", "device", "page_tokens"),
    [([], None, 16), ([], "NVIDIA H100", 16), ([], "cpu", 128), (["--block-size", "32"], "cpu", 32)],
)
def test_vllms_pages_are_larger_on_a_processor(command: list[str], device: str | None, page_tokens: int) -> None:
    assert limits(VllmAdapter().scheduling, command, device).page_tokens == page_tokens
    assert limits(SglangAdapter().scheduling, [], device).page_tokens == 1


def test_an_engine_built_for_rocm_needs_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rocm = Installed("vllm", "python", "0.26.0+rocm640", None, cuda="ROCm 6.4.43484", torch_version="2.9.1+rocm6.4")
    assert not VllmAdapter().is_cpu_build(rocm)
    monkeypatch.setattr(installed_engine, "vendor", lambda: AMD)
    assert VllmAdapter().problem(rocm, CPU_MACHINE) is None
    assert SglangAdapter().problem(rocm, CPU_MACHINE) is None
    monkeypatch.setattr(installed_engine, "vendor", lambda: NVIDIA)
    assert "no AMD GPU" in str(VllmAdapter().problem(rocm, GPU_MACHINE))
    cuda = Installed("vllm", "python", "0.26.0", None, cuda="13.0", torch_version="2.11.0+cu130")
    assert VllmAdapter().problem(cuda, GPU_MACHINE) is None
    assert "there is none" in str(VllmAdapter().problem(cuda, CPU_MACHINE))
