"""The contract of predictions: what a step of a server costs, fitted from runs, and what the simulator needs besides.

One file holds the models of several methods (and servers). Every coefficient is 0 or more and in seconds: ``steps`` a
step, ``prompt_steps`` what a step with prompt tokens in it costs besides (engines replay graphs for decoding alone),
``decodes`` a generated token, ``context`` a token whose keys and values a generated one reads, ``prompt_tokens``
a prompt token, ``prompt_work`` a token that a prompt token looks at.
"""

from pathlib import Path

import msgspec

from kvload.errors import UsageError
from kvload.untrusted import DECODE_ERRORS

FEATURES = ("steps", "prompt_steps", "decodes", "context", "prompt_tokens", "prompt_work")
FILE_LIMIT = 16 << 20


DECODE_FEATURES, PROMPT_FEATURES = ("steps", "decodes", "context"), ("prompt_steps", "prompt_tokens", "prompt_work")
"""What a step costs with and without prompts: the two parts drift apart from run to run (launching kernels is a matter
of the host, reading the cache one of the GPU)."""


class Spread(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far another run of the same server may lie from a model: standard deviations.

    Attributes:
        decode, prompt: logarithm of the time of the two parts of a step.
        overhead_s: seconds of a first token beside its steps.
        runs: runs that were each held against a model of the others; 0 where all of this is an assumption: what vLLM on
            two H100 machines showed (docs/results/prediction.md), for a model of one run.
    """

    decode: float = 0.023
    prompt: float = 0.11
    overhead_s: float = 0.006
    runs: int = 0


class StepModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Step times of one method on one server, and the rules of that server.

    Attributes:
        method, engine, engine_version, device, model: what was measured, as its runs name it.
        coefficients: seconds, in the order of :data:`FEATURES`.
        covariance: of the coefficients, from the scatter of the steps.
        hull: least and most of every feature of one step among those measured.
        steps: measured steps.
        error_p50, error_p90: relative error of the fitted steps, in-sample.
        free_prompt_tokens: prompt tokens of a step that cost nothing beside ``prompt_steps``.
        overhead_s: what a first token takes beside its steps: network, tokenising, the server's own loop.
        token_s: what a first token takes longer for every other request that receives a token in its step: a server
            takes requests in and hands tokens out one after the other.
        ahead_steps: steps that are settled before a request that arrives can be part of one: 1 where the server
            schedules a step while the one before runs.
        spread: how far another run may lie from this.
        pool_tokens: tokens the cache holds, as the server reports.
        page_tokens, max_sequences, chunk_tokens: the scheduler's settings.
        kept_tokens: tokens of a sequence that stay after its prompt, where the method evicts; None for all.
        evicts_while_decoding: whether generated tokens are evicted as well.
        spare_pages: those of the pool that never hold anything.
        prefix_cache: whether it kept the beginnings of prompts; None where no run says.
        runs: folders that it was fitted from.
    """

    method: str
    coefficients: tuple[float, float, float, float, float, float]
    covariance: list[list[float]]
    hull: dict[str, tuple[float, float]]
    steps: int
    error_p50: float
    error_p90: float
    engine: str | None = None
    engine_version: str | None = None
    device: str | None = None
    model: str | None = None
    free_prompt_tokens: int = 0
    overhead_s: float = 0.0
    token_s: float = 0.0
    ahead_steps: int = 0
    spread: Spread = Spread()
    pool_tokens: int | None = None
    page_tokens: int = 16
    max_sequences: int = 256
    chunk_tokens: int = 2048
    kept_tokens: int | None = None
    evicts_while_decoding: bool = False
    spare_pages: int = 0
    prefix_cache: bool | None = None
    runs: list[str] = []

    @property
    def caches_prefixes(self) -> bool:
        """Whether what prompts share is computed once: not under methods that evict."""
        return self.kept_tokens is None and self.prefix_cache is not False


class StepModels(msgspec.Struct, frozen=True, kw_only=True):
    """The file: models by method, the baseline's first."""

    kvload_version: str
    models: list[StepModel]

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


def read(path: Path) -> StepModels:
    """Read a file of step models.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise UsageError("too large for a file of step models", where=str(path))
        return msgspec.json.decode(path.read_bytes(), type=StepModels)
    except OSError as error:
        raise UsageError(
            f"cannot be read: {error.strerror}", where=str(path), hint="kvload predict fit RUN... -o FILE makes one"
        ) from error
    except DECODE_ERRORS as error:
        raise UsageError(
            f"is no file of step models: {error}", where=str(path), hint="kvload predict fit RUN... -o FILE makes one"
        ) from error


def write(path: Path, models: StepModels) -> None:
    """Write a file of step models.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(models), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path)) from error
