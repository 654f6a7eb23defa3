"""SGLang as the launcher sees it."""

import re
from collections.abc import Mapping
from pathlib import Path

from kvload.errors import UsageError
from kvload.servers.engines import settings
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest, flag_value, has_flag, served_name
from kvload.servers.engines.sglang.settings import SETTINGS
from kvload.servers.host.installed import find_python, look
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts

PROGRESS = (
    (re.compile(r"Load weight begin"), "loading weights"),
    (re.compile(r"Loading safetensors checkpoint shards: +(\d+)% "), "loading weights: {0} %"),
    (re.compile(r"Load weight end"), "weights loaded"),
    (re.compile(r"KV Cache is allocated.*?#tokens: (\d+)"), "KV cache of {0} tokens"),
    (re.compile(r"Capture (?:cuda|CUDA) graph begin"), "capturing CUDA graphs"),
    (re.compile(r"Capturing batches.*?(\d+)%"), "capturing CUDA graphs: {0} %"),
    (re.compile(r"Application startup complete"), "starting the API"),
    (re.compile(r"The server is fired up"), "ready"),
)

ALLOCATED = re.compile(r"KV Cache is allocated.*?#tokens: (\d+), K size: ([\d.]+) GB, V size: ([\d.]+) GB")
DTYPE_LIST = re.compile(r"kv_cache_dtype: *A\[.{0,1500}?choices=\[([^\]]*)\]", re.DOTALL)
DTYPE_ARGUMENT = re.compile(r"\"--kv-cache-dtype\",.{0,400}?choices=\[([^\]]*)\]", re.DOTALL)
"""How versions before 0.5.17 spell the same list."""


class SglangAdapter:
    """Starts ``python -m sglang.launch_server`` with its metrics on."""

    name = "sglang"
    start_timeout_s = 1200.0
    stop_grace_s = 20.0
    reset_path: str | None = "/flush_cache"
    pool_memory: re.Pattern[str] | None = ALLOCATED
    scoring = "prefix"

    def find(self, python: str | None, env: Mapping[str, str], machine: Machine) -> Build | None:
        """SGLang in an environment, by its metadata, or by its own version file where it has none.

        Raises:
            UsageError: the Python does not run.
        """
        path = find_python(python)
        found = look({"sglang": ("sglang",)}, path, env).get("sglang")
        if found is None:
            return None
        cpu = found.cuda is None
        problem = "it needs a GPU, and there is none" if not machine.gpus else None
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
        """``sglang.launch_server`` with the method's setting.

        Raises:
            UsageError: the installed SGLang cannot do what is asked here.
        """
        row, dtype = settings.pick(SETTINGS, request.method, self.name)
        if not request.method.startswith(settings.RAW):
            settings.refuse_obstacle(SETTINGS, row, build, model, machine)
        name = served_name(model)
        command = [build.python, "-m", "sglang.launch_server", "--model-path", str(model.folder or model.name)]
        command += ["--served-model-name", name, "--host", request.host, "--port", str(port)]
        command += ["--load-format", request.load_format, "--enable-metrics"]
        if dtype != "auto":
            command += ["--kv-cache-dtype", dtype]
        if request.max_model_len is not None:
            command += ["--context-length", str(request.max_model_len)]
        if request.kv_memory is not None and not has_flag(request.engine_args, "--max-total-tokens"):
            command += ["--max-total-tokens", str(self._tokens(request, row, model))]
        if row.arguments and not has_flag(request.engine_args, row.arguments[0]):
            command += row.arguments
        command += request.engine_args
        off = has_flag(request.engine_args, "--disable-radix-cache")
        return LaunchPlan(
            command=tuple(command),
            env={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if model.folder is not None else {},
            served_name=name,
            claim=settings.claim_of(
                row, model, settings.element_bytes(flag_value(request.engine_args, "--dtype"), model)
            ),
            compresses=settings.compresses(row),
            error_limit=row.error_limit,
            prefix_cache="off" if off else "reset",
            notes=tuple(filter(None, (build.problem, row.note))),
        )

    def progress(self, line: str) -> str | None:
        """What a line of SGLang's log says about its start."""
        for expression, text in PROGRESS:
            if match := expression.search(line):
                return text.format(*match.groups())
        return None

    def _tokens(self, request: LaunchRequest, row: settings.Setting, model: ModelFacts) -> int:
        """SGLang sizes its cache in tokens: the memory asked for, divided by what the method claims to take."""
        claim = settings.claim_of(row, model, settings.element_bytes(flag_value(request.engine_args, "--dtype"), model))
        if claim is None or request.kv_memory is None:
            raise UsageError(
                "SGLang takes the size of its cache in tokens, and the method's bytes per token are not known",
                where="--kv-memory",
                hint="give --max-total-tokens or --mem-fraction-static after --",
            )
        return max(1, int(request.kv_memory / claim.bytes_per_token))


def accepted_dtypes(folder: Path | None) -> frozenset[str] | None:
    """The values ``--kv-cache-dtype`` takes, read from SGLang's source; None where they are not found there."""
    if folder is None:
        return None
    try:
        source = (folder / "srt" / "server_args.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = DTYPE_LIST.search(source) or DTYPE_ARGUMENT.search(source)
    return frozenset(re.findall(r"[\"']([\w.-]+)[\"']", match.group(1))) or None if match else None
