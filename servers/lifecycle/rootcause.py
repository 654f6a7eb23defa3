"""Why a server did not start or died, recognised from its log and from how its process ended.

Engines bury the cause under the tracebacks of every process that noticed it. The patterns here find the line that
matters; what no pattern knows falls back to the last exception that is not merely an echo of another.
"""

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ_LIMIT = 2 * 2**20
"""Bytes of a log that are searched: from its end."""

LONGEST_LINE = 4096
_LONGEST_SHOWN = 400
"""Characters of a line that are searched, and that are shown."""


@dataclass(frozen=True)
class RootCause:
    """A failure in words.

    Attributes:
        kind: ``gpu_memory``, ``memory``, ``port``, ``model``, ``dtype``, ``toolchain``, ``metadata``, ``kv_room``,
            ``context``, ``flag``, ``import``, ``driver``, ``gpu_lost``, ``node_lost``, ``killed``, ``exit`` or
            ``exception``.
        message: what happened, in one sentence.
        hint: what to do about it, if that is known.
        line: the line of the log it was read from.
    """

    kind: str
    message: str
    hint: str | None = None
    line: str | None = None


@dataclass(frozen=True)
class Pattern:
    """How one kind of failure shows in a log. ``message`` may name the expression's groups."""

    kind: str
    expression: re.Pattern[str]
    message: str
    hint: str | None = None


def _pattern(kind: str, expression: str, message: str, hint: str | None = None) -> Pattern:
    return Pattern(kind, re.compile(expression), message, hint)


PATTERNS = (
    _pattern(
        "port",
        r"\[Errno 98\].*|[Aa]ddress already in use.*|error while attempting to bind on address.*",
        "the port is taken by another process",
        "choose another --port, or leave it out for a free one",
    ),
    _pattern(
        "flag",
        r"error: unrecognized arguments: (?P<flags>.{1,200})",
        "the engine does not know the argument: {flags}",
        "the arguments after -- go to the engine as they are; see its own --help",
    ),
    _pattern(
        "dtype",
        r"argument --kv-cache-dtype: invalid choice: (?P<dtype>'?[\w.-]+'?)",
        "the engine does not know the KV-cache dtype {dtype}",
        "kvload methods lists what each engine can do",
    ),
    _pattern(
        "dtype",
        r"FP8 KV cache on CPU requires x86 with AVX-512 or AMX",
        "vLLM's CPU build stores quantised KV caches only on processors with AVX-512 or AMX",
        "use --method none here, or the embedded engine's methods",
    ),
    _pattern(
        "dtype",
        r"No valid attention backend found .*",
        "no attention backend of the engine can serve this KV-cache dtype on this device",
        "kvload methods lists what each engine can do",
    ),
    _pattern(
        "dtype",
        r"(?P<text>[^\n]{0,200}kv_cache_dtype not supported[^\n]{0,200})",
        "the attention backend does not support this KV-cache dtype",
        "leave the attention backend to the engine, or choose another method",
    ),
    _pattern(
        "dtype",
        r"(?P<text>--kv-cache-dtype[= ]\w+ requires [^\n]{1,200})",
        "{text}",
        "kvload methods lists what each engine can do",
    ),
    _pattern(
        "gpu_memory",
        r"Free memory on device [^\n]*\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)[^\n]*is less than desired GPU memory",
        "out of GPU memory: {free} of {total} GiB are free, less than the engine was told to take",
        "stop what else runs on the GPU, or lower --gpu-memory-utilization (after --)",
    ),
    _pattern(
        "gpu_memory",
        r"(?:torch\.)?(?:cuda\.)?OutOfMemoryError: (?P<text>[^\n]{1,240})|CUDA (?:error: )?out of memory[^\n]*",
        "out of GPU memory",
        "stop what else runs on the GPU, or lower --gpu-memory-utilization, --mem-fraction-static or --max-model-len",
    ),
    _pattern(
        "kv_room",
        r"To serve at least one request with the model[s']* max seq len \(?(?P<length>\d+)\)?"
        r"[^\n]*?\(?(?P<needed>[\d.]+) GiB KV cache is needed"
        r"[^\n]*?available KV cache memory \((?P<there>[\d.]+) GiB\)"
        r"(?:[^\n]*?maximum model length is (?P<possible>\d+))?",
        "the KV cache has no room for one request of max_model_len {length}: {needed} GiB needed, {there} GiB there",
        "lower --max-model-len or raise --kv-memory",
    ),
    _pattern(
        "kv_room",
        r"No available memory for the cache blocks|Not enough memory\. Please try to increase --mem-fraction-static",
        "nothing is left for the KV cache once the weights are loaded",
        "raise --kv-memory, --gpu-memory-utilization or --mem-fraction-static",
    ),
    _pattern(
        "context",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len[^\n]{0,160}",
        "--max-model-len {asked} is more than the model was made for",
        "lower --max-model-len",
    ),
    _pattern(
        "model",
        r"(?P<text>Repository Not Found[^\n]{0,160}|[^\n]{0,160}is not a valid model identifier[^\n]{0,80}"
        r"|Invalid repository ID or local directory specified[^\n]{0,160}|[^\n]{0,120}does not appear to have a file"
        r"[^\n]{0,80}|Cannot find any model weights[^\n]{0,120}|No (?:safetensors|model) (?:files|weights)[^\n]{0,120}"
        r"|LocalEntryNotFoundError: [^\n]{0,160}|Can't load the configuration of[^\n]{0,120})",
        "the model was not found: {text}",
        "give a folder with config.json and weights, or a model that is in the Hugging Face cache",
    ),
    _pattern(
        "toolchain",
        r"(?P<text>Failed to find C compiler[^\n]{0,120}|InvalidCxxCompiler[^\n]{0,120}|nvcc[^\n]{0,40}not found"
        r"|Could not find nvcc[^\n]{0,120}|CUDA_HOME environment variable is not set[^\n]{0,80}|Ninja is required"
        r"[^\n]{0,80}|ninja: build stopped[^\n]{0,80}|Python\.h: No such file[^\n]{0,40}|No such file or directory: "
        r"'?(?:nvcc|gcc|g\+\+|cc|c\+\+|ninja)'?)",
        "the engine compiles kernels at start and found no working toolchain: {text}",
        "install a C++ compiler (nvcc, ninja, Python's headers where they are named), or point CC and CXX to one",
    ),
    _pattern(
        "metadata",
        r"(?P<text>No package metadata was found for [\w.-]+|Failed to infer device type[^\n]{0,80})",
        "the engine's installation is not whole: {text}",
        "vLLM looks its version up as 'vllm': see tests/vllm/install.sh for the CPU build; otherwise install it again",
    ),
    _pattern(
        "driver",
        r"(?P<text>The NVIDIA driver on your system is too old[^\n]{0,80}|No CUDA GPUs are available"
        r"|Found no NVIDIA driver[^\n]{0,80}|CUDA driver version is insufficient[^\n]{0,80})",
        "the GPU cannot be used: {text}",
        "check nvidia-smi, and that the engine was built for this driver",
    ),
    _pattern(
        "gpu_lost",
        r"(?P<text>uncorrectable ECC error[^\n]{0,80}|CUDA-capable device\(s\) is/are busy or unavailable"
        r"|[^\n]{0,80}(?:GPU is lost|has fallen off the bus)[^\n]{0,80}|CUDA error: invalid device ordinal"
        r"|NVML: (?:Unknown Error|GPU is lost))",
        "the GPU is not there, or at fault: {text}",
        "check nvidia-smi and the kernel's log (dmesg) for Xid errors; name other GPUs with --gpus",
    ),
    _pattern(
        "import",
        r"(?P<text>(?:ModuleNotFoundError|ImportError): [^\n]{1,200})",
        "the engine does not import: {text}",
        "give the Python it is installed in with --python, or install it again",
    ),
    _pattern(
        "memory",
        r"DefaultCPUAllocator: can't allocate memory[^\n]{0,120}|MemoryError\b",
        "out of memory",
        "lower --kv-memory",
    ),
)
"""In the order they are tried: what names its cause exactly comes before what many causes lead to."""

ECHOES = re.compile(
    r"Engine core initialization failed|Engine process failed to start|EngineDeadError|EngineCore encountered an"
    r"|check the stack trace above|Rank \d+ scheduler is dead|CancelledError|KeyboardInterrupt|WorkerProc init"
    r"|leaked shared_memory|Initialization failed\. Please see"
)
"""Exceptions that only say that something else failed."""

HARMLESS = re.compile(r"\b(?:WARNING|INFO|DEBUG)\b|Warning:")
"""Lines that may speak of an exception without there being one."""

EXCEPTION = re.compile(r"(?:^|[\s\]])((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt)): (\S.{0,400})$")
PREFIX = re.compile(r"^(?:\x1b\[[\d;]*m)*(?:\([\w ]+pid=\d+\)(?:\x1b\[[\d;]*m)* ?)?")
"""What vLLM puts before every line of a child process."""


def read_tail(path: Path, limit: int = READ_LIMIT) -> str:
    """The end of a log, with escape sequences taken out and endless lines cut; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[\d;]{0,40}[A-Za-z]", "", data.decode("utf-8", "replace")).replace("\r", "\n")
    return "\n".join(map(_shortened, text.split("\n")))


def _shortened(line: str, most: int = LONGEST_LINE) -> str:
    """A line's beginning and end, which say what it is about."""
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def last_lines(text: str, count: int = 15) -> str:
    """The last lines that are not blank."""
    last = [line for line in text.splitlines() if line.strip()][-count:]
    return "\n".join(_shortened(line, _LONGEST_SHOWN) for line in last)


def recognise(log: str, exit_state: Mapping[str, Any] | None = None) -> RootCause:
    """The cause of a failure.

    Args:
        log: the server's log, or its end.
        exit_state: what the keeper wrote of the process's end, where it has ended.
    """
    state = exit_state or {}
    if isinstance(state.get("error"), str):
        return RootCause("exit", f"the command could not be started: {state['error']}")
    for pattern in PATTERNS:
        if match := pattern.expression.search(log):
            groups = {name: _tidy(value or "?") for name, value in match.groupdict().items()}
            return RootCause(pattern.kind, pattern.message.format(**groups), pattern.hint, _line_at(log, match.start()))
    number = state.get("signal")
    if isinstance(number, int) and number == signal.SIGKILL:
        return RootCause(
            "killed",
            "the process was killed (SIGKILL) from outside: by the system for lack of memory, or by hand",
            "lower --kv-memory, or see the kernel's log (dmesg)",
        )
    if found := _last_exception(log):
        return found
    if isinstance(number, int):
        return RootCause("killed", f"the process ended by signal {number} ({_signal_name(number)})")
    if isinstance(state.get("exit_code"), int):
        return RootCause("exit", f"the process ended with exit code {state['exit_code']}")
    return RootCause("exit", "the process is gone and left no cause")


def read_exit_state(path: Path) -> dict[str, Any]:
    """What the keeper wrote; empty where there is nothing readable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_exception(log: str) -> RootCause | None:
    found: RootCause | None = None
    for line in log.splitlines():
        match = EXCEPTION.search(line[-800:])
        if match and not ECHOES.search(line) and not HARMLESS.search(line):
            found = RootCause("exception", f"{match.group(1)}: {_tidy(match.group(2))}", None, _tidy(line))
    return found


def _line_at(log: str, position: int) -> str:
    start = log.rfind("\n", 0, position) + 1
    end = log.find("\n", position)
    return _tidy(log[start : len(log) if end < 0 else end])


def _tidy(line: str) -> str:
    return PREFIX.sub("", line).strip()[:400]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
