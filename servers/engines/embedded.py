"""The embedded engine as the launcher sees it: kvload's own server, always installed."""

import re
import sys
from collections.abc import Mapping

from kvload import __version__
from kvload.errors import UsageError
from kvload.servers.catalogue.claims import Stored
from kvload.servers.catalogue.methods import METHODS, parse_method
from kvload.servers.engines.base import Build, Claim, LaunchPlan, LaunchRequest, flag_value, served_name
from kvload.servers.host.installed import find_python, own_torch_cuda
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts

CLAIM_TOKENS = 2048
"""Length of the sequence that a method's bytes per token are stated for: budgets and windows make them depend on it."""

POOL_CLAIM_TOKENS = 2**20
"""Length at which windows no longer count."""

PROGRESS = re.compile(r"^(starting|loading .*|making random weights|allocating .*|ready on .*)$", re.IGNORECASE)


class EmbeddedAdapter:
    """Starts ``python -m kvload.servers.embedded``."""

    name = "embedded"
    start_timeout_s = 180.0
    stop_grace_s = 10.0
    reset_path: str | None = None
    pool_memory: re.Pattern[str] | None = None
    scoring = "chunked"

    def find(
        self,
        python: str | None,
        env: Mapping[str, str],  # noqa: ARG002  the protocol's
        machine: Machine,
    ) -> Build | None:
        """Always there, in kvload's own environment; its version is kvload's."""
        device = "cuda" if machine.gpus and own_torch_cuda() is not None else "cpu"
        return Build(self.name, find_python(python) if python else sys.executable, __version__, device)

    def plan(
        self,
        request: LaunchRequest,
        port: int,
        build: Build,
        model: ModelFacts,
        machine: Machine,  # noqa: ARG002  the protocol's
    ) -> LaunchPlan:
        """The command line; the method is checked against the catalogue.

        Raises:
            UsageError: no such method, or a ``raw:`` one.
        """
        if request.method.startswith("raw:"):
            raise UsageError(
                "the embedded engine has no settings beyond its methods",
                where=f"--method {request.method}",
                hint=f"its methods: {', '.join(METHODS)}",
            )
        method = parse_method(request.method)
        name = served_name(model)
        command = [build.python, "-u", "-m", "kvload.servers.embedded"]
        command += ["--model", str(model.folder or model.name), "--served-model-name", name]
        command += ["--host", request.host, "--port", str(port), "--method", str(method)]
        command += ["--load-format", request.load_format]
        if request.kv_memory is not None:
            command += ["--kv-memory", str(request.kv_memory)]
        if request.max_model_len is not None:
            command += ["--max-model-len", str(request.max_model_len)]
        command += request.engine_args
        env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if model.folder else {}
        return LaunchPlan(
            command=tuple(command),
            env={**env, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
            served_name=name,
            claim=_claim(request, model, build, CLAIM_TOKENS),
            # The engine's pool counts stored tokens: all in the long run, or the kept ones of a method that evicts.
            pool_claim=_claim(request, model, build, 1 if METHODS[method.name].evicts else POOL_CLAIM_TOKENS),
            compresses=method.name != "none" and not METHODS[method.name].evicts,
            error_limit=error_limit(method.name),
            prefix_cache="off",
        )

    def progress(self, line: str) -> str | None:
        """The engine's own progress lines are already in words."""
        match = PROGRESS.match(line.strip())
        return match.group(1) if match else None


def _claim(request: LaunchRequest, model: ModelFacts, build: Build, tokens: int) -> Claim | None:
    if model.layers is None or model.kv_heads is None or model.head_size is None:
        return None
    spec = parse_method(request.method)
    element = _element_bytes(flag_value(request.engine_args, "--dtype"), model, build)
    scale = model.layers * model.kv_heads
    claimed = METHODS[spec.name].claim(Stored(tokens, model.head_size, element, spec.options))
    return Claim(scale * claimed, scale * 2 * model.head_size * element)


def error_limit(method: str) -> float:
    """How much of the context's effect a method of this name may lose and still count as sound.

    Eviction loses what it drops by design: there the check only tells a working cache from a broken one.
    """
    if method in METHODS and METHODS[method].evicts:
        return 1.2
    if method.endswith("-2"):
        return 0.9
    return 0.5 if method.endswith("4") else 0.3


def _element_bytes(dtype: str | None, model: ModelFacts, build: Build) -> int:
    """Bytes of an uncompressed element: the engine computes in float32 on a CPU unless told otherwise."""
    if dtype in {None, "auto"}:
        dtype = "float32" if build.device == "cpu" else model.dtype or "bfloat16"
    return 4 if dtype == "float32" else 2
