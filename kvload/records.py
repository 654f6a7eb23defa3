"""The contract between what sends requests and what analyses them.

Times are seconds on the run's own clock: 0 is the moment the schedule starts (``RunManifest.started_at`` ties it to
wall time). Missing values are ``None``, never 0. Chunk arrival times live beside the records in a binary file (see
:mod:`kvload.rundir`), since a run has hundreds of them for every request.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import msgspec

from kvload.units import LIMIT_METRICS, percentile_of

Status = Literal["ok", "failed", "timeout", "refused", "censored", "unsent"]
"""How a request ended.

``ok`` the stream ended as the protocol says; ``failed`` an error of transport, protocol or server; ``timeout`` the
request's own limit passed; ``refused`` the server answered 4xx; ``censored`` cut off by the end of the run while its
answer was still coming; ``unsent`` never sent (run stopped, previous turn failed, over the server's limit). Every
status but ``unsent`` counts as sent.
"""


SERVER_HEADER = "x-kvload-server"
"""The header of an answer in which a router, or a balancer, names the server that it asked: its ``ServerInfo.name``."""


GOOD_ENDS = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})
"""Reasons to stop with which an answer is whole. Any other, or none, is no success."""


UNLIKE_COUNTS = 0.25
"""Counts of the same texts that differ by more than this share are of different things."""


Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A number of something, or a place in a file: what is read from a damaged folder must be one, too."""

RunTime = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
"""Seconds that a run can take, or since 1970: no run lasts for centuries."""

Seed = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""A seed, as far as it is compared."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was sent as one request and what came back.

    Attributes:
        index: position in the whole schedule, the same in every arm; pairs are formed by it and ``request_id``.
        prompt_digest: see :func:`prompt_digest`.
        input_tokens: prompt length as planned, in tokens, where the trace states it.
        prompt_tokens: prompt length as the server counted it (``usage.prompt_tokens``).
        cached_tokens: those of ``prompt_tokens`` that the server took from its prefix cache, where it says so
            (``usage.prompt_tokens_details.cached_tokens``).
        cached_doubt: why that count was not believed, so that there is none.
        server: position in :attr:`RunManifest.servers` of the one that answered.
        server_name: what the answer's :data:`SERVER_HEADER` said, where no server of the manifest has that name.
        t_sched_s: when the schedule wanted the request to start.
        t_send_s: when its first byte was handed to the kernel.
        t_headers_s: when the first byte of the response arrived.
        t_first_s: arrival of the first chunk carrying at least one output token, of reasoning or of the answer.
        t_answer_s: arrival of the first chunk with something of the answer itself.
        t_last_s: arrival of the last chunk carrying tokens.
        t_end_s: the end of the stream, or of the failure.
        output_tokens_source: ``usage``, ``token_ids`` (or log probabilities, which list tokens too) or ``chunks`` (an
            estimate: one token a text chunk).
        first_chunk_tokens: tokens that came at once: in the first token-carrying chunk, and in those that came in one
            read with it.
        end_tokens: those of ``output_tokens`` that came in no chunk and have no time of their own: the end of the
            sequence.
        reasoning_tokens: those of ``output_tokens`` that are reasoning; None where there is none.
        count_doubt: why the server's own count was not believed, so that chunks were counted.
        unproven_tokens: those of ``output_tokens`` that nothing but the server's count speaks for: neither a chunk nor
            a token id.
        in_bursts: half of the chunks or more came in one read with the chunk before: something on the way gathered
            them, and TPOT and ITL are not the server's.
        damaged: some of the text was no UTF-8 and is lost; times and counts are not.
        chunk_offset, chunk_count: the request's rows in its shard's chunk file.
        chunk_tick_us: the unit of their times, in microseconds.
        cause: short category of a failure: ``connect``, ``reset``, ``http_500``, ``stream_error``, ``timeout``,
            ``stall``, ``malformed``, ``truncated``, ``aborted``, ``unknown_end``, ``empty``, ``cut``,
            ``server_died`` ...
        text, reasoning, tool_calls: what was answered, what was thought before, and the tools that were called
            (``name`` and the JSON text of ``arguments``).
        clock: ``kernel`` (socket receive timestamps) or ``user``.
        queue_s, prefill_s, decode_s: the server's own account, where it gives one.
        expected, scorer, task: carried over from the trace for scoring.
    """

    index: Count
    request_id: str
    prompt_digest: str
    max_tokens: Count
    t_sched_s: float
    status: Status
    worker: Count = 0
    server: Count = 0
    server_name: str | None = None
    session: str | None = None
    turn: Count | None = None
    task: str | None = None
    input_tokens: Count | None = None
    prompt_tokens: Count | None = None
    cached_tokens: Count | None = None
    cached_doubt: str | None = None
    min_tokens: Count = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: Seed | None = None
    t_send_s: float | None = None
    t_headers_s: float | None = None
    t_first_s: float | None = None
    t_answer_s: float | None = None
    t_last_s: float | None = None
    t_end_s: float | None = None
    output_tokens: Count | None = None
    output_tokens_source: Literal["usage", "token_ids", "chunks"] | None = None
    first_chunk_tokens: Count | None = None
    end_tokens: Count = 0
    reasoning_tokens: Count | None = None
    count_doubt: str | None = None
    unproven_tokens: Count = 0
    in_bursts: bool = False
    damaged: bool = False
    chunk_offset: Count = 0
    chunk_count: Count = 0
    chunk_tick_us: Count = 1
    finish_reason: str | None = None
    cause: str | None = None
    error: str | None = None
    http_status: Count | None = None
    retries: Count = 0
    clock: Literal["kernel", "user"] = "user"
    text: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, str]] | None = None
    token_ids: list[int] | None = None
    expected: str | None = None
    scorer: str | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: ``t_first - t_send``."""
        return _between(self.t_send_s, self.t_first_s)

    @property
    def ttfo_s(self) -> float | None:
        """Time to the first output of the answer itself, behind the reasoning: ``t_answer - t_send``."""
        return _between(self.t_send_s, self.t_answer_s)

    @property
    def later_tokens(self) -> int:
        """Tokens that came after the first chunk and at a time of their own."""
        return (self.output_tokens or 0) - (self.first_chunk_tokens or 0) - self.end_tokens

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first chunk: ``(t_last - t_first) / later_tokens``.

        None where there is no later token, and where chunks came in bursts.
        """
        span_s = _between(self.t_first_s, self.t_last_s)
        return None if span_s is None or self.later_tokens <= 0 or self.in_bursts else span_s / self.later_tokens

    @property
    def e2e_s(self) -> float | None:
        """From the first byte sent to the last token: ``t_last - t_send``."""
        return _between(self.t_send_s, self.t_last_s)

    @property
    def lag_s(self) -> float | None:
        """How late it was sent: ``t_send - t_sched``."""
        return _between(self.t_sched_s, self.t_send_s)

    @property
    def has_one_token(self) -> bool:
        """The answer has one token by proof, and so can have no TPOT: the server says so, or no more were asked for."""
        one = self.output_tokens == 1 or (self.output_tokens is not None and self.output_tokens - self.end_tokens == 1)
        known = self.output_tokens_source in {"usage", "token_ids"} or self.max_tokens == 1
        return one and known and self.t_first_s is not None


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


class ServerSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One scrape of a server's metrics, in the vocabulary shared by all engines.

    Gauges: ``running`` and ``waiting`` requests, ``cache_usage`` (share of the pool, 0 to 1), ``pool_tokens``.
    The others are the server's own running totals: ``preemptions``, ``prefix_queries`` and ``prefix_hits`` (tokens),
    ``prompt_tokens``, ``generation_tokens``, finished ``requests``, and summed ``queue_s``, ``prefill_s``,
    ``decode_s`` with ``requests`` as their count. ``server`` is its position in :attr:`RunManifest.servers`.
    """

    t_s: float
    server: int = 0
    running: float | None = None
    waiting: float | None = None
    cache_usage: float | None = None
    pool_tokens: float | None = None
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    requests: float | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    error: str | None = None


class ClockOffset(msgspec.Struct, frozen=True, kw_only=True):
    """How the wall clock of a server's machine stands to that of the machine that kvload runs on.

    Attributes:
        offset_s: the server's less the other, seconds.
        doubt_s: how far that may be wrong: half of the fastest way there and back.
        measured_at: Unix seconds.
    """

    offset_s: float
    doubt_s: float
    measured_at: float


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The server a run was made against, as far as it is known.

    ``command`` and ``env`` have secrets masked. ``bytes_per_token`` is what the method claims over all layers and KV
    heads in a sequence of ``claim_tokens`` tokens, ``element_bytes`` the size of an uncompressed element;
    ``pool_tokens`` is the size of the cache as the server reports it. ``prefix_cache`` is ``off``, ``on``, ``reset``
    (emptied before the run) or None where unknown. ``verified`` holds the checks made after launch.
    ``gpus`` are those it was given, by number or UUID, ``tensor_parallel`` over how many of them every layer is spread;
    ``gpu_kind`` says what these are. ``node`` is the machine of a cluster that it ran on, ``clock`` how that machine's
    clock stood to this one's.
    ``dtype``, ``threads`` and ``kernels`` are what the server says it computes in and with: all bear on speed, and the
    first on answers. ``graph_streams`` is how many requests at once its CUDA graphs cover, 0 where it uses none.
    """

    url: str
    engine: str | None = None
    engine_version: str | None = None
    model: str | None = None
    method: str | None = None
    name: str | None = None
    command: list[str] | None = None
    env: dict[str, str] | None = None
    max_model_len: int | None = None
    pool_tokens: int | None = None
    bytes_per_token: float | None = None
    claim_tokens: int | None = None
    element_bytes: int | None = None
    prefix_cache: str | None = None
    verified: dict[str, Any] | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    kernels: str | None = None
    graph_streams: int | None = None
    gpus: list[str] = []
    tensor_parallel: int = 1
    gpu_kind: str | None = None
    node: str | None = None
    clock: ClockOffset | None = None


class TraceInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace a run replayed: file name, SHA-256, format, rows read and used, and what was changed on the way.

    ``limited`` says that no more rows were read once there were enough requests.
    """

    path: str
    sha256: str
    format: str
    rows: int
    used: int
    changes: list[str] = []
    block_reuse: float | None = None
    limited: bool = False

    @property
    def rows_text(self) -> str:
        """``first 200 rows``, ``180 of the first 200 rows``, ``19,366 rows``, ``180 of 200 rows``."""
        every = f"first {self.rows:,} rows" if self.limited else f"{self.rows:,} rows"
        if self.used == self.rows:
            return every
        return f"{self.used:,} of {'the ' if self.limited else ''}{every}"


class FailureKind(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The requests of a run that ended in one way other than ``ok``.

    Attributes:
        status, cause: as in their records.
        count: how many there are.
        first: what the first of them was told, in the server's own words where it said anything.
        request_id: that request.
    """

    status: Status
    cause: str | None
    count: int
    first: str | None = None
    request_id: str | None = None


class TokenCheck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tokens of some answers as they were counted, and as the server's own tokenizer finds them in their texts.

    Attributes:
        answers: how many were asked about.
        counted: their tokens by the records.
        tokenized: their tokens by the server's ``/tokenize``.
    """

    answers: Count
    counted: Count
    tokenized: Count

    @property
    def differs(self) -> bool:
        """Whether they differ by more than a text that is tokenised again does: a quarter, and two tokens an answer."""
        apart = abs(self.counted - self.tokenized)
        return apart > UNLIKE_COUNTS * min(self.counted, self.tokenized) and apart > 2 * self.answers


class GpuUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one GPU of the server's machine took during a run, idle draw and other programs included.

    ``energy_j`` and its mean ``power_w`` are from NVML's counter; ``memory_bytes`` is what was in use at the end.
    """

    name: str | None = None
    energy_j: float | None = None
    power_w: float | None = None
    memory_bytes: int | None = None


class RunManifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything about a run that is not a request.

    Attributes:
        servers: every server the run was made against; records and samples name theirs by its position. Where the
            first is a router, those that it sends requests to come after it.
        mode: ``free`` (natural end of sequence) or ``forced`` (lengths as in the trace).
        arrivals: the schedule in words and numbers (``{"kind": "trace", "speed": 2.0, ...}``).
        slo: limits in seconds by metric (``ttft``, ``tpot``, ``e2e``).
        client: workers, clock source, CPU share per worker, kernel timestamps, host.
        calibration: the client's own error against the mock server, where it was measured.
        planned: requests in the schedule; ``sent``, ``unsent`` fill in at the end.
        partial: the run did not come to its end; ``ended`` says why.
        fault: whose doing that was: ``user`` (interrupted), ``server``, ``machine`` (disk, files, memory, a killed
            process) or ``kvload``.
        failures: how many requests ended in which way other than ``ok``, the most frequent first.
        started_at: wall-clock time (Unix seconds) of the run's zero.
        duration_s: from the run's zero to the end of its last request.
        eviction: what the server counted during the run, where it counts evictions: ``requests`` that lost blocks,
            ``freed_blocks``, and ``compactions`` where a GPU's kernels count them. Told twice a second, so that the
            last half second may be missing.
        token_check: counts of some answers held against the server's tokenizer, where it has one that can be asked.
    """

    run_id: str
    kvload_version: str
    servers: list[ServerInfo]
    trace: TraceInfo
    mode: Literal["free", "forced"]
    seed: Count
    arrivals: dict[str, Any]
    planned: int
    slo: dict[str, float] = {}
    warmups: int = 0
    timeout_s: float | None = None
    max_concurrency: int | None = None
    client: dict[str, Any] = {}
    calibration: dict[str, Any] | None = None
    started_at: RunTime | None = None
    duration_s: RunTime | None = None
    sent: int | None = None
    unsent: int | None = None
    partial: bool = True
    ended: str | None = None
    fault: Literal["user", "server", "machine", "kvload"] | None = None
    failures: list[FailureKind] = []
    arm: str | None = None
    repeat: int | None = None
    notes: list[str] = []
    metadata: dict[str, str] = {}
    gpus: list[GpuUse] = []
    eviction: dict[str, int] | None = None
    token_check: TokenCheck | None = None

    @property
    def server(self) -> ServerInfo:
        """The first server: the only one, where a run was not spread over several."""
        return self.servers[0]


def decode_manifest(content: bytes) -> RunManifest:
    """A run's manifest, also one of version 0.1.0, which named a single ``server``.

    Raises:
        msgspec.MsgspecError: it does not parse, or names no server.
    """
    found = msgspec.json.decode(content)
    if isinstance(found, dict) and "server" in found and "servers" not in found:
        found["servers"] = [found.pop("server")]
    manifest = msgspec.convert(found, RunManifest)
    if not manifest.servers:
        raise msgspec.ValidationError("`servers` is empty")
    for name, limit_s in manifest.slo.items():
        if (name not in LIMIT_METRICS and percentile_of(name) is None) or not 0 < limit_s < math.inf:
            raise msgspec.ValidationError(f"a limit in `slo` is none: {name!r} {limit_s}")
    return manifest


def prompt_digest(prompt: str | list[int] | list[dict[str, Any]]) -> str:
    """A short digest of what the server is asked: text, token ids, or chat messages.

    Returns:
        the first 16 bytes of the SHA-256 of the canonical JSON, as 32 hexadecimal digits. The same prompt gives the
        same digest in every process and on every machine.
    """
    canonical = json.dumps(prompt, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]
