"""The contract of predictions: what a step of a server costs, fitted from runs, and what the simulator needs besides.

One file holds the models of several methods (and servers). Every coefficient is 0 or more and in seconds. What the
GPU does adds up: ``steps`` a step, ``decodes`` a generated token, ``context`` a token whose keys and values a
generated one reads, ``prompt_tokens`` a prompt token, ``prompt_work`` a token that a prompt token looks at. ``launch``
does not: it is what the host takes to launch a step with prompts in it, whose kernels no recorded graph holds, and the
later of both counts. ``prompt_steps`` is the end of such a step, behind both (:mod:`kvload.servers.simulator.cost`).
"""

from pathlib import Path
from typing import Annotated

import msgspec

from kvload.errors import UsageError
from kvload.untrusted import DECODE_ERRORS

FEATURES = ("steps", "prompt_steps", "decodes", "context", "prompt_tokens", "prompt_work")
COEFFICIENTS = (*FEATURES, "launch")
FILE_LIMIT = 16 << 20
FORMAT = 2

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Deviation = Annotated[float, msgspec.Meta(ge=0, le=10)]
"""A standard deviation of a logarithm."""
Tokens = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**6)]
Places = Annotated[int, msgspec.Meta(ge=1, le=10**6)]

Coefficients = tuple[Seconds, Seconds, Seconds, Seconds, Seconds, Seconds, Seconds]

PARTS = (("steps", "decodes", "context"), ("prompt_steps", "prompt_tokens", "prompt_work"), ("launch",))
"""Coefficients of decoding, of reading prompts and of the host: these drift apart from run to run."""


class Spread(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far another run of the same server may lie from a model: standard deviations.

    Attributes:
        decode, prompt, launch: logarithm of the coefficients of each of :data:`PARTS`.
        overhead_s: seconds of a first token beside its steps, however long these were.
        ttft, tpot: logarithm of what a run shows to what simulations under its own coefficients say, beyond how
            launches fall: servers that stand still, fronts that fall behind, and whatever else no coefficient tells.
        runs: runs that were each held against a model of the others; 0 where all of this is an assumption, for a model
            of one run: what vLLM on two H100 machines showed, each held against a model of the other
            (docs/results/prediction.md).
    """

    decode: Deviation = 0.020
    prompt: Deviation = 0.044
    launch: Deviation = 0.139
    overhead_s: Seconds = 0.0026
    ttft: Deviation = 0.071
    tpot: Deviation = 0.0
    runs: Count = 0


class StepModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Step times of one method on one server, and the rules of that server.

    Attributes:
        method, engine, engine_version, device, model: what was measured, as its runs name it.
        coefficients: seconds, in the order of :data:`COEFFICIENTS`.
        draws: coefficients as other stretches of the same runs would have given them; none where that is not known.
        hull: least and most of every feature of one step among those measured.
        steps: measured steps.
        error_p50, error_p90: relative error of the fitted steps, in-sample.
        overhead_s: what a first token takes beside its steps: network, tokenising, the server's own loop.
        token_s: what a first token takes longer for every other request that receives a token in its step: a server
            takes requests in and hands tokens out one after the other.
        ahead_steps: steps that are settled before a request that arrives can be part of one: 1 where the server
            schedules a step while the one before runs.
        launch_jitter: standard deviation of the logarithm of a launch around its mean.
        spread: how far another run may lie from this.
        pool_tokens: tokens the cache holds, as the server reports.
        page_tokens, max_sequences, chunk_tokens: the scheduler's settings.
        max_model_len: tokens of a prompt and its answer that the server takes at most; None where no run says.
        tensor_parallel: GPUs over which every layer was spread.
        kept_tokens: tokens of a sequence that stay after its prompt, where the method evicts; None for all.
        evicts_while_decoding: whether generated tokens are evicted as well.
        spare_pages: those of the pool that never hold anything.
        prefix_cache: whether it kept the beginnings of prompts; None where no run says.
        runs: folders that it was fitted from, as they were named.
        run_ids: the identities of these runs, wherever their folders are.
    """

    method: str
    coefficients: Coefficients
    draws: list[Coefficients]
    hull: dict[str, tuple[float, float]]
    steps: int
    error_p50: float
    error_p90: float
    engine: str | None = None
    engine_version: str | None = None
    device: str | None = None
    model: str | None = None
    overhead_s: Seconds = 0.0
    token_s: Seconds = 0.0
    ahead_steps: Count = 0
    launch_jitter: Deviation = 0.0
    spread: Spread = Spread()
    pool_tokens: Tokens | None = None
    page_tokens: Tokens = 16
    max_sequences: Places = 256
    chunk_tokens: Tokens = 2048
    max_model_len: Tokens | None = None
    tensor_parallel: Places = 1
    kept_tokens: Tokens | None = None
    evicts_while_decoding: bool = False
    spare_pages: Count = 0
    prefix_cache: bool | None = None
    runs: list[str] = []
    run_ids: list[str] = []

    @property
    def caches_prefixes(self) -> bool:
        """Whether what prompts share is computed once: not under methods that evict."""
        return self.kept_tokens is None and self.prefix_cache is not False


class StepModels(msgspec.Struct, frozen=True, kw_only=True):
    """The file: models by method, the baseline's first."""

    kvload_version: str
    models: list[StepModel]
    format: int = FORMAT

    def of(self, method: str) -> StepModel:
        """The model of a method.

        Raises:
            UsageError: the file has none.
        """
        for model in self.models:
            if model.method == method:
                return model
        known = ", ".join(model.method for model in self.models)
        raise UsageError(f"no step times of '{method}' were fitted", where="--method", hint=f"fitted: {known}")


class _Header(msgspec.Struct, frozen=True):
    format: int = 1


def read(path: Path) -> StepModels:
    """Read a file of step models.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise UsageError("too large for a file of step models", where=str(path))
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_Header).format
        if found != FORMAT:
            age = "an older" if found < FORMAT else "a newer"
            raise UsageError(
                f"was fitted by {age} kvload, for which a step consisted of other parts",
                where=str(path),
                hint="kvload predict fit RUN... -o FILE fits the same runs again",
            )
        models = msgspec.json.decode(content, type=StepModels)
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(path), hint="kvload predict fit RUN... -o FILE makes one"
        ) from error
    except DECODE_ERRORS as error:
        raise UsageError(
            f"is no file of step models: {error}", where=str(path), hint="kvload predict fit RUN... -o FILE makes one"
        ) from error
    _require_usable(models, path)
    return models


def _require_usable(models: StepModels, path: Path) -> None:
    names = [model.method for model in models.models]
    if not names:
        raise UsageError("has no step models", where=str(path), hint="kvload predict fit RUN... -o FILE makes one")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"has two step models of '{twice}'", where=str(path))
    for model in models.models:
        require_room(model.chunk_tokens, model.max_sequences, where=f"{path}, {model.method}")


def require_room(chunk_tokens: int, max_sequences: int, *, where: str) -> None:
    """Refuse a scheduler whose steps cannot hold a token of every running request.

    Raises:
        UsageError: it is one.
    """
    if chunk_tokens < max_sequences:
        raise UsageError(
            f"steps of {chunk_tokens:,} tokens do not hold one of each of {max_sequences:,} requests",
            where=where,
            hint="--max-num-seqs and --chunk-tokens of 'kvload predict fit' say what the server was started with",
        )


def write(path: Path, models: StepModels) -> None:
    """Write a file of step models.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(models), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from error
