"""Run folders from what other load generators saved, so that runs people already have can be reported and compared.

What a file does not tell stays unmeasured: prompts (pairs are formed by position and prompt length), the server, the
schedule (requests count from when they were sent).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload import __version__
from kvload.errors import RunDirError, TraceError
from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo, prompt_digest
from kvload.rundir import CHUNK_DTYPE, RunDir

MOST_BYTES = 2 << 30
"""A larger file is refused: it is read whole."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as a file tells it; times in seconds since the first was sent.

    Attributes:
        gaps_s: from token to token, where the file has them.
    """

    sent_s: float
    ttft_s: float | None
    e2e_s: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    gaps_s: tuple[float, ...] = ()
    text: str | None = None
    error: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What one file holds."""

    tool: str
    model: str | None
    engine: str | None
    rate_rps: float | None
    concurrency: int | None
    started_at: float | None
    requests: list[Request]


def read(path: Path) -> Saved:
    """Read a result of ``vllm bench serve --save-detailed`` (SGLang's has the same keys) or an AIPerf record export.

    Raises:
        TraceError: it is neither, or lacks what a run needs.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise TraceError(f"is larger than {MOST_BYTES >> 30} GiB", where=str(path))
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise TraceError("is not UTF-8", where=str(path)) from error
    first = text.lstrip()[:1]
    if first != "{":
        raise TraceError("holds no JSON object", where=str(path), hint=_HINT)
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:
        try:
            rows = [json.loads(text)]
        except ValueError as error:
            raise TraceError(f"is not JSON: {error}", where=str(path)) from None
    for recognise, reader in ((_is_vllm, _vllm), (_is_aiperf, _aiperf)):
        if recognise(rows[0]):
            return reader(rows, path)
    raise TraceError("is no result that kvload knows", where=str(path), hint=_HINT)


_HINT = "known: vllm bench serve --save-result --save-detailed, and AIPerf's profile_export.jsonl"


def _is_vllm(row: Any) -> bool:
    return isinstance(row, dict) and "ttfts" in row and ("itls" in row or "output_lens" in row)


def _is_aiperf(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("metrics"), dict) and isinstance(row.get("metadata"), dict)


def _vllm(rows: list[Any], path: Path) -> Saved:
    if len(rows) != 1:
        raise TraceError(f"holds {len(rows)} results", where=str(path), hint="import them one by one")
    row = rows[0]
    lists = {name: row.get(name) or [] for name in ("ttfts", "itls", "input_lens", "output_lens", "start_times")}
    count = len(lists["ttfts"])
    if not lists["start_times"]:
        raise TraceError(
            "has no start_times: when requests were sent is not known, and so no rate, goodput or series",
            where=str(path),
            hint="save it anew with a vLLM that writes start_times (--save-detailed of 0.11 and later)",
        )
    for name in ("output_lens", "start_times"):
        if len(lists[name]) != count:
            raise TraceError(f"has {len(lists[name])} {name} for {count} ttfts", where=str(path))
    start = min(map(float, lists["start_times"]))
    texts, errors = row.get("generated_texts") or [], row.get("errors") or []
    found = []
    for index in range(count):
        gaps = tuple(float(gap) for gap in (lists["itls"][index] if index < len(lists["itls"]) else []))
        ttft, output = float(lists["ttfts"][index]), int(lists["output_lens"][index])
        error = errors[index] if index < len(errors) and errors[index] else None
        began = output > 0 and error is None
        found.append(
            Request(
                sent_s=float(lists["start_times"][index]) - start,
                ttft_s=ttft if began else None,
                e2e_s=ttft + sum(gaps) if began else None,
                prompt_tokens=_at(lists["input_lens"], index),
                output_tokens=output if began else None,
                gaps_s=gaps if began else (),
                text=texts[index] if index < len(texts) else None,
                error=str(error) if error else (None if began else "the file has no answer"),
            )
        )
    rate = row.get("request_rate")
    return Saved(
        tool="vllm bench serve",
        model=row.get("model_id"),
        engine=row.get("backend"),
        rate_rps=float(rate) if isinstance(rate, int | float) and rate != float("inf") else None,
        concurrency=row.get("max_concurrency"),
        started_at=None,
        requests=found,
    )


def _at(values: list[Any], index: int) -> int | None:
    return int(values[index]) if index < len(values) and values[index] is not None else None


def _aiperf(rows: list[Any], path: Path) -> Saved:
    found = []
    starts = [row["metadata"].get("request_start_ns") for row in rows if _is_aiperf(row)]
    if not starts or any(start is None for start in starts) or len(starts) != len(rows):
        raise TraceError("a row has no metadata.request_start_ns", where=str(path))
    first = min(starts)
    for row, start in zip(rows, starts, strict=True):
        told, metrics = row["metadata"], row["metrics"]
        ttft, latency = _seconds(metrics, "time_to_first_token"), _seconds(metrics, "request_latency")
        output = _value(metrics, "output_sequence_length") or _value(metrics, "output_token_count")
        error = row.get("error")
        found.append(
            Request(
                sent_s=(start - first) / 1e9,
                ttft_s=ttft,
                e2e_s=latency,
                prompt_tokens=None if (tokens := _value(metrics, "input_sequence_length")) is None else int(tokens),
                output_tokens=None if output is None else int(output),
                error=None if not error else json.dumps(error)[:500],
                request_id=told.get("x_request_id"),
            )
        )
    found.sort(key=lambda request: request.sent_s)
    return Saved(
        tool="AIPerf",
        model=None,
        engine=None,
        rate_rps=None,
        concurrency=None,
        started_at=first / 1e9,
        requests=found,
    )


def _value(metrics: Mapping[str, Any], name: str) -> float | None:
    found = metrics.get(name)
    value = found.get("value") if isinstance(found, dict) else found
    return float(value) if isinstance(value, int | float) else None


_UNITS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}


def _seconds(metrics: Mapping[str, Any], name: str) -> float | None:
    value, found = _value(metrics, name), metrics.get(name)
    unit = found.get("unit", "ms") if isinstance(found, dict) else "ms"
    return None if value is None or unit not in _UNITS else value * _UNITS[unit]


def write(saved: Saved, source: Path, out: Path, *, name: str, slo: Mapping[str, float]) -> RunDir:
    """Make the run folder.

    Args:
        saved: what the file holds.
        source: the file, for the manifest.
        out: the folder.
        name: what reports call it, as its method.
        slo: limits in seconds by metric.

    Raises:
        RunDirError: the folder is there already, or there is no request.
    """
    import hashlib

    if not saved.requests:
        raise RunDirError("holds no request", where=str(source))
    count = len(saved.requests)
    run = RunDir.create(
        out,
        RunManifest(
            run_id=hashlib.sha256(source.read_bytes()).hexdigest()[:16],
            kvload_version=__version__,
            servers=[
                ServerInfo(url=f"imported from {saved.tool}", engine=saved.engine, model=saved.model, method=name)
            ],
            trace=TraceInfo(path=source.name, sha256="", format=saved.tool, rows=count, used=count),
            mode="free",
            seed=0,
            arrivals={"kind": f"as {saved.tool} sent them", "rate": saved.rate_rps},
            planned=count,
            slo=dict(slo),
            max_concurrency=saved.concurrency,
            started_at=saved.started_at,
            arm=name,
            notes=[
                f"imported from {saved.tool}: times are its own, in user space; prompts are not in the file, so that"
                " pairs are formed by position and prompt length"
            ],
        ),
    )
    end_s = 0.0
    with run.writer("imported") as writer:
        for record, chunks in _records(saved):
            writer.append(record, chunks)
            end_s = max(end_s, record.t_end_s or 0.0)
    run.update_manifest(partial=False, ended="imported", duration_s=end_s, sent=count, unsent=0)
    return run


def _records(saved: Saved) -> Iterator[tuple[RequestRecord, npt.NDArray[np.void]]]:
    for index, request in enumerate(saved.requests):
        ok = request.error is None and request.ttft_s is not None and request.e2e_s is not None
        chunks = np.empty(0, CHUNK_DTYPE)
        first = last = None
        end_s = request.sent_s
        if ok and request.ttft_s is not None and request.e2e_s is not None:
            first, last = request.sent_s + request.ttft_s, request.sent_s + request.e2e_s
            end_s = last
            chunks = _chunks(request)
        yield (
            RequestRecord(
                index=index,
                request_id=request.request_id or str(index),
                prompt_digest=prompt_digest([index, request.prompt_tokens or 0]),
                max_tokens=request.output_tokens or 1,
                t_sched_s=request.sent_s,
                status="ok" if ok else "failed",
                input_tokens=request.prompt_tokens,
                prompt_tokens=request.prompt_tokens,
                t_send_s=request.sent_s,
                t_first_s=first,
                t_last_s=last,
                t_end_s=end_s,
                output_tokens=request.output_tokens,
                output_tokens_source="usage" if request.output_tokens is not None else None,
                first_chunk_tokens=1 if ok else None,
                cause=None if ok else "imported",
                error=request.error,
                text=request.text,
            ),
            chunks,
        )


def _chunks(request: Request) -> npt.NDArray[np.void]:
    """Chunk rows where the file has the gaps: one a token where their number allows, else tokens spread over them."""
    if request.ttft_s is None or not request.gaps_s:
        return np.empty(0, CHUNK_DTYPE)
    times = request.ttft_s + np.concatenate([[0.0], np.cumsum(request.gaps_s)])
    tokens = np.ones(len(times), np.int64)
    rest = (request.output_tokens or len(times)) - len(times)
    if rest > 0:
        tokens[1:] += rest // (len(times) - 1)
        tokens[1 : 1 + rest % (len(times) - 1)] += 1
    found = np.empty(len(times), CHUNK_DTYPE)
    found["us"], found["tokens"] = np.round(times * 1e6), tokens
    return found
