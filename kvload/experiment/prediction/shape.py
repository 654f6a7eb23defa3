"""What is known of a server beside its step times: its method, scheduler and cache, as a run's manifest tells them."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvload.errors import UsageError
from kvload.records import RunManifest, ServerInfo
from kvload.step_model import StepModel, require_room

DIFFERING = {
    "engine": "engine",
    "model": "model",
    "device": "device",
    "tensor_parallel": "GPUs a layer",
    "page_tokens": "tokens a page",
    "max_sequences": "requests at once",
    "chunk_tokens": "tokens a step",
}
"""What servers must have in common to be fitted together."""

SAME_POOL = 0.05
"""By how much caches may differ (a logarithm): what an engine finds free varies from start to start."""


@dataclass(frozen=True)
class Overrides:
    """What the runs do not tell, or tell wrongly.

    Attributes:
        pool_tokens, max_sequences, chunk_tokens: in place of the server's own; None keeps those.
        method: of runs that do not say theirs.
    """

    pool_tokens: int | None = None
    max_sequences: int | None = None
    chunk_tokens: int | None = None
    method: str | None = None


def differing(one: StepModel, other: StepModel) -> list[str]:
    """In what two servers differ whose steps, or whose waiting, cannot be alike; what is not known does not differ."""
    found = []
    for name, what in DIFFERING.items():
        mine, theirs = getattr(one, name), getattr(other, name)
        if None not in (mine, theirs) and mine != theirs:
            found.append(f"{what} {mine} here, {theirs}")
    mine, theirs = one.pool_tokens, other.pool_tokens
    if mine and theirs and abs(np.log(mine / theirs)) > SAME_POOL:
        found.append(f"a cache of {mine:,} tokens here, {theirs:,}")
    return found


def with_limits_of(shape: StepModel, other: StepModel) -> StepModel:
    """A server with another's scheduler."""
    names = ("page_tokens", "max_sequences", "chunk_tokens")
    return msgspec.structs.replace(shape, **{name: getattr(other, name) for name in names})


def bare_shape(method: str, overrides: Overrides) -> StepModel:
    """A server of which only the method is known."""
    sequences, tokens = overrides.max_sequences or 256, overrides.chunk_tokens or 8192
    require_room(tokens, sequences, where="--chunk-tokens, --max-num-seqs")
    return StepModel(
        method=method,
        coefficients=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        draws=[],
        hull={},
        steps=0,
        error_p50=0.0,
        error_p90=0.0,
        pool_tokens=overrides.pool_tokens,
        max_sequences=sequences,
        chunk_tokens=tokens,
    )


def shape_of(method: str, server: ServerInfo, overrides: Overrides) -> StepModel:
    """A model without step times: what a run's manifest tells of a server's scheduler and cache."""
    from kvload.servers.engines.base import ENGINES, adapter
    from kvload.servers.engines.scheduling import Scheduling, limits

    known = server.engine in ENGINES
    scheduling = adapter(server.engine).scheduling if server.engine and known else Scheduling("", "", "", 256, 2048, 16)
    found = limits(scheduling, server.command or [], server.device)
    kept, evicts = kept_by(method)
    asked = Overrides(
        max_sequences=overrides.max_sequences or found.max_sequences,
        chunk_tokens=overrides.chunk_tokens or found.chunk_tokens,
        pool_tokens=overrides.pool_tokens or server.pool_tokens,
    )
    return msgspec.structs.replace(
        bare_shape(method, asked),
        engine=server.engine,
        engine_version=server.engine_version,
        device=server.device,
        model=server.model,
        page_tokens=found.page_tokens,
        spare_pages=scheduling.spare_pages,
        max_model_len=server.max_model_len,
        tensor_parallel=server.tensor_parallel,
        kept_tokens=kept,
        evicts_while_decoding=evicts,
        prefix_cache=None if server.prefix_cache is None else server.prefix_cache != "off",
    )


def kept_by(method: str) -> tuple[int | None, bool]:
    """Tokens of a sequence that stay where a method evicts, None for all; and whether generated ones go as well."""
    from kvload.servers.catalogue.asked import MethodSpec, read_method
    from kvload.servers.catalogue.methods import METHODS

    spec = read_method(method)
    row = METHODS.get(spec.name) if isinstance(spec, MethodSpec) else None
    kept = None
    if row is not None and row.kept and isinstance(spec, MethodSpec):
        options = {option.name: option.default for option in row.options} | dict(spec.options)
        kept = int(sum(options[name] for name in row.kept))
    return kept, bool(row and row.evicts_generated)


def method_of(manifest: RunManifest, path: Path, given: str | None = None) -> str:
    """The method of a run's server, or the one that is given where the run does not say.

    A server that was given by its address tells the dtype of its cache at most, which a method inside the engine leaves
    as it was: an arm that is named like a method is taken at its word.

    Raises:
        UsageError: neither does.
    """
    from kvload.servers.catalogue.methods import METHODS

    arm = manifest.arm
    if manifest.server.command is None and arm is not None and arm.partition(":")[0] in METHODS:
        return arm
    # Where the first is a router, the servers behind it have the method.
    told = list(dict.fromkeys(server.method for server in manifest.servers if server.method is not None))
    if len(told) > 1:
        raise UsageError(f"its servers had different methods: {', '.join(told)}", where=str(path))
    method = told[0] if told else given
    if method is None:
        raise UsageError(
            "the run does not say which method its server had",
            where=str(path),
            hint="--method NAME says it; runs against servers that kvload launched need none",
        )
    return method
