"""SGLang as the launcher sees it."""

import re
from collections.abc import Sequence
from dataclasses import replace

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec, read_method
from kvload.servers.engines.arguments import has_flag
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest, Reported, Said
from kvload.servers.engines.installed_engine import InstalledEngine, method_of_dtype, no_gpu_for
from kvload.servers.engines.scheduling import Scheduling
from kvload.servers.engines.settings import Setting
from kvload.servers.engines.sglang import plugin
from kvload.servers.engines.sglang.metrics import METRICS
from kvload.servers.engines.sglang.settings import SETTINGS
from kvload.servers.host.installed import Installed
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

CACHED_FLAG = "--enable-cache-report"
"""With it an answer's usage says how many tokens of its prompt the prefix cache held, where that is any."""

CAPTURED = re.compile(r"Capture [\w ]*decode [\w ]*begin\..{0,120}?\bbs=\[([\d, ]{1,4000})\]")
"""The batch sizes of the graphs of generated tokens."""


class SglangAdapter(InstalledEngine):
    """Starts ``python -m sglang.launch_server`` with its metrics on."""

    name = "sglang"
    distributions = ("sglang",)
    start_timeout_s = 1200.0
    start_estimate_s = 120.0
    stop_grace_s = 20.0
    reset_path = "/flush_cache"
    info_path = "/server_info"
    metrics = METRICS
    scoring = "prefix"
    pool_memory = re.compile(r"KV Cache is allocated.*?#tokens: (\d+), K size: ([\d.]+) GB, V size: ([\d.]+) GB")
    pool_in_tokens = "--kv-memory (SGLang is given tokens)"
    reads_gguf = True
    auto_on_gpu = True
    tensor_flags = ("--tp-size", "--tensor-parallel-size", "--tp")
    stage_flags = ("--pp-size", "--pipeline-parallel-size")
    copy_flags = ("--dp-size", "--data-parallel-size", "--dp")
    scheduling = Scheduling("--max-running-requests", "--chunked-prefill-size", "--page-size", 256, 8192, 1)
    # Seen on 0.5.17; prompts of token ids or plain text go another way and have them.
    streams_chat_token_ids = False
    settings = SETTINGS
    dtype_source = ("srt", "server_args.py")
    dtype_lists = (
        re.compile(r"kv_cache_dtype: *A\[.{0,1500}?choices=\[([^\]]*)\]", re.DOTALL),
        # Before 0.5.17.
        re.compile(r"\"--kv-cache-dtype\",.{0,400}?choices=\[([^\]]*)\]", re.DOTALL),
    )
    progress_lines = PROGRESS

    def plan(self, request: LaunchRequest, port: int, build: Build, model: ModelFacts, machine: Machine) -> LaunchPlan:
        """See the base class; a method of the plugin is refused in an SGLang that the plugin does not know.

        Raises:
            UsageError: the installed SGLang cannot do what is asked here.
        """
        chosen = request.chosen
        if (
            isinstance(chosen, MethodSpec)
            and plugin.brings(chosen)
            and (against := plugin.obstacle(chosen.name, build))
        ):
            raise UsageError(against, where=f"--method {request.method}")
        return super().plan(request, port, build, model, machine)

    def shared_arguments(self, methods: Sequence[str], arguments: tuple[str, ...]) -> tuple[str, ...]:
        """What the plugin's methods run without, the baseline does without as well: sharing of prefixes."""
        chosen = [read_method(method) for method in methods]
        names = [method.name for method in chosen if isinstance(method, MethodSpec) and plugin.brings(method)]
        unshared = next(filter(plugin.shares_no_prefixes, names), None)
        return () if unshared is None else plugin.sharing_arguments(unshared, arguments)

    def width(self, request: LaunchRequest) -> int:
        """Copies of the attention alone share the GPUs of its ranks."""
        shared = has_flag(request.engine_args, "--enable-dp-attention")
        return super().width(request) // (self.copies(request) if shared else 1)

    def problem(self, found: Installed, machine: Machine) -> str | None:
        """No GPU."""
        return no_gpu_for(found, machine)

    def command(
        self,
        request: LaunchRequest,
        row: Setting,
        dtype: str,
        port: int,
        build: Build,
        model: ModelFacts,
        plan: LaunchPlan,
    ) -> LaunchPlan:
        """``sglang.launch_server``."""
        command = [build.python, "-m", "sglang.launch_server", "--model-path", str(model.folder or model.name)]
        command += ["--served-model-name", plan.served_name, "--host", request.host, "--port", str(port)]
        command += ["--load-format", request.load_format, "--enable-metrics"]
        if not has_flag(request.engine_args, CACHED_FLAG):
            command.append(CACHED_FLAG)
        if dtype != "auto":
            command += ["--kv-cache-dtype", dtype]
        if request.max_model_len is not None:
            command += ["--context-length", str(request.max_model_len)]
        # It is told what each copy of the engine holds.
        memory = request.kv_memory
        one = request if memory is None else replace(request, kv_memory=memory // self.copies(request))
        if row.plugin and isinstance(request.chosen, MethodSpec):
            plan, added = plugin.planned(plan, one, request.chosen, model)
            command += added
        elif request.kv_memory is not None and not has_flag(request.engine_args, "--max-total-tokens"):
            command += ["--max-total-tokens", str(tokens(one, plan))]
        if row.arguments and not has_flag(request.engine_args, row.arguments[0]):
            command += row.arguments
        command += [*self.spread(request), *request.engine_args]
        off = has_flag(tuple(command), "--disable-radix-cache")
        notes = plan.notes
        if has_flag(request.engine_args, "--api-key"):
            notes = (*notes, "SGLang takes its key on the command line alone: other users of this machine can read it")
        return replace(plan, command=tuple(command), prefix_cache="off" if off else "reset", notes=notes)

    def graph_streams(self, command: Sequence[str], log: str) -> int | None:
        """The largest batch it says it captures for generated tokens."""
        if has_flag(tuple(command), "--disable-cuda-graph", "--disable-decode-cuda-graph"):
            return 0
        sizes = [int(size) for match in CAPTURED.finditer(log) for size in re.findall(r"\d+", match[1])]
        return max(sizes, default=None)

    def reported(self, said: Said) -> Reported:
        """From its server information."""
        disabled = said.info.get("disable_radix_cache")
        return Reported(
            method=method_of_dtype(said.info.get("kv_cache_dtype")),
            prefix_cache=None if not isinstance(disabled, bool) else "off" if disabled else "on",
            pool_tokens=whole(said.info.get("max_total_num_tokens")),
            max_model_len=whole(said.info.get("context_length")),
        )


def tokens(request: LaunchRequest, plan: LaunchPlan) -> int:
    """SGLang sizes its cache in tokens: the memory asked for, divided by what the method claims to take.

    Raises:
        UsageError: the claim is not known.
    """
    if plan.claim is None or request.kv_memory is None:
        raise UsageError(
            "SGLang takes the size of its cache in tokens, and the method's bytes per token are not known",
            where="--kv-memory",
            hint="give --max-total-tokens or --mem-fraction-static after --",
        )
    return max(1, int(request.kv_memory / plan.claim.bytes_per_token))


def whole(value: object) -> int | None:
    """A number of tokens as the server states it; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
