"""The embedded engine as the launcher sees it: kvload's own server, installed with ``kvload[engine]``."""

import re
import sys
from collections.abc import Mapping

from kvload import __version__
from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec, RawDtype, nearest
from kvload.servers.catalogue.claims import CLAIM_HEAD_DIM, CLAIM_TOKENS, Stored
from kvload.servers.catalogue.methods import METHODS, Method
from kvload.servers.engines.arguments import flag_value
from kvload.servers.engines.base import (
    Adapter,
    Build,
    Claim,
    LaunchPlan,
    LaunchRequest,
    Offer,
    Reported,
    Said,
    served_name,
)
from kvload.servers.engines.embedded.metrics import METRICS
from kvload.servers.engines.scheduling import Scheduling
from kvload.servers.host.installed import find_python, look, own_packages, own_torch_cuda
from kvload.servers.host.machine import Machine
from kvload.servers.host.model_facts import ModelFacts

NEEDS = frozenset({"aiohttp", "safetensors", "torch", "transformers"})
"""Packages that only the embedded engine needs."""

POOL_CLAIM_TOKENS = 2**20
"""Length at which windows no longer count."""

PROGRESS = re.compile(r"^(starting|loading [^|]*|making random weights|allocating .*|ready on .*)$", re.IGNORECASE)
"""The engine's own progress lines are already in words."""


class EmbeddedAdapter(Adapter):
    """Starts ``python -m kvload.servers.embedded``."""

    name = "embedded"
    start_timeout_s = 180.0
    start_estimate_s = 12.0
    metrics = METRICS
    scoring = "chunked"
    in_kvload = True
    extra = "engine"
    scheduling = Scheduling("--max-num-seqs", "--chunk-tokens", "--block-size", 128, 512, 64)
    progress_lines = ((PROGRESS, "{0}"),)

    def find(
        self,
        python: str | None,
        env: Mapping[str, str],
        machine: Machine,
    ) -> Build | None:
        """There where what it needs is; its version is kvload's."""
        if python is None:
            interpreter, held = sys.executable, own_packages(NEEDS)
        else:
            interpreter = find_python(python)
            held = set(look({name: (name,) for name in NEEDS if name != "torch"}, interpreter, env)) | {"torch"}
        if not held >= NEEDS:
            return None
        device = "cuda" if machine.gpus and own_torch_cuda() is not None else "cpu"
        return Build(self.name, interpreter, __version__, device)

    def plan(
        self,
        request: LaunchRequest,
        port: int,
        build: Build,
        model: ModelFacts,
        machine: Machine,
    ) -> LaunchPlan:
        """The command line; the method is checked against the catalogue.

        Raises:
            UsageError: no such method, or a ``raw:`` one.
        """
        self.ranks(request)
        method = request.chosen
        if isinstance(method, RawDtype) or method.name not in METHODS:
            raise UsageError(
                f"the embedded engine has no method '{method}'",
                where=f"--method {request.method}",
                hint=f"{nearest(str(method), METHODS)}its methods: {', '.join(METHODS)}",
            )
        if request.max_model_len and model.max_positions and request.max_model_len > model.max_positions:
            raise UsageError(
                f"the model takes {model.max_positions} positions", where=f"--max-model-len {request.max_model_len}"
            )
        row = METHODS[method.name]
        name = served_name(model)
        command = [build.python, "-u", "-m", "kvload.servers.embedded"]
        command += ["--model", str(model.folder or model.name), "--served-model-name", name]
        command += ["--host", request.host, "--port", str(port), "--method", str(method)]
        command += ["--load-format", request.load_format]
        if request.kv_memory is not None:
            command += ["--kv-memory", f"{request.kv_memory}B"]
        if request.max_model_len is not None:
            command += ["--max-model-len", str(request.max_model_len)]
        command += request.engine_args
        env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if model.folder else {}
        return LaunchPlan(
            command=tuple(command),
            env={**env, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
            served_name=name,
            claim=_claim(method, request, model, build, machine, CLAIM_TOKENS),
            # The engine's pool counts stored tokens: all in the long run, or the kept ones of a method that evicts.
            pool_claim=_claim(method, request, model, build, machine, 1 if row.evicts else POOL_CLAIM_TOKENS),
            compresses=row.compresses,
            error_limit=row.error_limit,
            prefix_cache="off",
        )

    def offers(self) -> Mapping[str, Offer]:
        """The whole catalogue."""
        return {name: _offer(row) for name, row in METHODS.items()}

    def reported(self, said: Said) -> Reported:
        """Its method by kvload's own name; it has no prefix cache."""
        method = said.info.get("method")
        enabled = said.labels.get("enable_prefix_caching")
        return Reported(
            method=method if isinstance(method, str) else None,
            prefix_cache={"True": "on", "False": "off"}.get(enabled) if enabled is not None else None,
        )


def _offer(row: Method) -> Offer:
    options = {option.name: option.default for option in row.options}
    return Offer(EmbeddedAdapter.name, row.name, row.claim(Stored(CLAIM_TOKENS, CLAIM_HEAD_DIM, 2, options)))


def _claim(
    spec: MethodSpec, request: LaunchRequest, model: ModelFacts, build: Build, machine: Machine, tokens: int
) -> Claim | None:
    if model.layers is None or model.kv_heads is None or model.head_size is None:
        return None
    element = _element_bytes(flag_value(request.engine_args, "--dtype"), model, build, machine)
    scale = model.layers * model.kv_heads
    claimed = METHODS[spec.name].claim(Stored(tokens, model.head_size, element, spec.options))
    return Claim(scale * claimed, scale * 2 * model.head_size * element, element)


def _element_bytes(dtype: str | None, model: ModelFacts, build: Build, machine: Machine) -> int:
    """Bytes of an uncompressed element, in the dtype that the engine will choose; see ``embedded/model/model.py``."""
    if dtype in {None, "auto"}:
        narrow = machine.has_bfloat16 and model.dtype in {"bfloat16", "float16"}
        dtype = "bfloat16" if build.device == "cuda" or narrow else "float32"
    return 4 if dtype == "float32" else 2
