"""Causes are recognised in recorded logs of real engines and in their messages as their sources write them."""

from pathlib import Path

import pytest

from kvload.servers.lifecycle.rootcause import LONGEST_LINE, last_lines, read_exit_state, read_tail, recognise

FIXTURES = Path(__file__).parents[1] / "fixtures" / "logs"

RECORDED = {
    "vllm_flag": ("flag", "--no-such-flag"),
    "vllm_dtype_choice": ("dtype", "int3"),
    "vllm_dtype_cpu": ("dtype", "AVX-512"),
    "vllm_model_missing": ("model", "LocalEntryNotFoundError"),
    "vllm_no_weights": ("model", "weights"),
    "vllm_context": ("context", "9000"),
    "vllm_port": ("port", "taken"),
    "vllm_kv_room": ("kv_room", "4096"),
    "vllm_died_later": ("exception", "CPU Generator does not use offset"),
}

MESSAGES = [
    (
        "gpu_memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of",
    ),
    (
        "gpu_memory",
        "ValueError: Free memory on device cuda:0 (3.51/139.72 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 125.75 GiB). Decrease GPU memory utilization",
    ),
    ("kv_room", "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),
    ("kv_room", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."),
    ("dtype", "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=128, ...)"),
    ("dtype", "ValueError: --kv-cache-dtype mxfp8 requires an SM100+ (Blackwell) GPU for the block-scaled operands"),
    ("toolchain", "RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set triton"),
    ("toolchain", "FileNotFoundError: [Errno 2] No such file or directory: 'nvcc'"),
    ("toolchain", "RuntimeError: Ninja is required to load C++ extensions"),
    ("metadata", "importlib.metadata.PackageNotFoundError: No package metadata was found for vllm"),
    ("metadata", "RuntimeError: Failed to infer device type, please set the environment variable"),
    ("driver", "RuntimeError: No CUDA GPUs are available"),
    ("import", "ModuleNotFoundError: No module named 'sglang'"),
    ("port", "OSError: [Errno 98] Address already in use"),
    ("model", "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache"),
]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_logs(name: str) -> None:
    kind, words = RECORDED[name]
    cause = recognise(read_tail(FIXTURES / f"{name}.txt"))
    assert cause.kind == kind
    assert words in f"{cause.message} {cause.line}"
    assert "pid=" not in (cause.line or "")


@pytest.mark.parametrize(("kind", "message"), MESSAGES)
def test_messages_among_tracebacks(kind: str, message: str) -> None:
    log = (
        "INFO 11-22 03:00:00 [core.py:1] Initializing\n"
        f"(EngineCore pid=7) ERROR 11-22 03:00:01 [core.py:2] {message}\n"
        "Traceback (most recent call last):\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    )
    assert recognise(log).kind == kind


def test_kv_room_tells_the_figures() -> None:
    log = (
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (9.21 GiB). Based on the available memory, the "
        "estimated maximum model length is 75424."
    )
    cause = recognise(log)
    assert "131072" in cause.message
    assert "16.00 GiB needed, 9.21 GiB there" in cause.message


def test_an_unknown_exception_is_the_last_that_is_no_echo() -> None:
    log = (
        "(Worker pid=1) ERROR [x.py:1] KeyError: 'first'\n"
        "(EngineCore pid=2) ERROR [y.py:2] FrobnicationError: the flux is inverted\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    cause = recognise(log, {"exit_code": 1})
    assert cause.message == "FrobnicationError: the flux is inverted"


def test_without_a_word_in_the_log_the_end_of_the_process_speaks() -> None:
    assert "SIGKILL" in recognise("all is well\n", {"signal": 9}).message
    assert "SIGSEGV" in recognise("all is well\n", {"signal": 11}).message
    assert "exit code 3" in recognise("", {"exit_code": 3}).message
    assert recognise("", {"error": "No such file or directory: /x"}).message.endswith("No such file or directory: /x")
    assert recognise("").kind == "exit"


def test_logs_are_read_from_their_end_and_without_colours(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"first\n" + b"x" * 100 + b"\n\x1b[31mred\x1b[0m\n\xff\nlast\n\n")
    text = read_tail(path, limit=30)
    assert "first" not in text
    assert last_lines(text, 3).splitlines() == ["red", "\ufffd", "last"]
    assert read_tail(tmp_path / "absent") == ""
    assert read_exit_state(path) == {}


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (b"x", "exit"),
        (b"\x1b[1", "exit"),
        (b"A", "exit"),
        (b"ValueError: ", "exception"),
        (b"RuntimeError: CUDA out of memory. ", "gpu_memory"),
    ],
)
def test_a_line_of_100_megabytes_takes_no_time_and_is_not_shown_whole(tmp_path: Path, piece: bytes, kind: str) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        for _ in range(100):
            file.write(piece * (1_000_000 // len(piece)))
    text = read_tail(log)
    assert len(text) < 3 * LONGEST_LINE
    assert recognise(text, {"exit_code": 1}).kind == kind
    assert len(last_lines(text)) < 1000
