"""Runs with known timing, written through the run folder's own writer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvload.records import RequestRecord, RunManifest, ServerInfo, ServerSample, TraceInfo, prompt_digest
from kvload.rundir import CHUNK_DTYPE, RunDir

SLO = {"ttft": 0.15, "tpot": 0.012, "e2e": 3.0}


def manifest(planned: int, **changes: Any) -> RunManifest:
    values: dict[str, Any] = {
        "run_id": "synthetic",
        "kvload_version": "0.1.0",
        "servers": [ServerInfo(url="http://127.0.0.1:1", engine="embedded", model="tiny", method="none")],
        "trace": TraceInfo(path="trace.jsonl", sha256="0" * 64, format="kvload", rows=planned, used=planned),
        "mode": "free",
        "seed": 7,
        "arrivals": {"kind": "trace", "speed": 1.0},
        "planned": planned,
        "slo": SLO,
        "partial": False,
        "started_at": 1.7e9,
        "client": {"workers": 1, "cpu_share": [0.2]},
    }
    return RunManifest(**(values | changes))


def chunk_rows(times_s: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    rows = np.empty(len(times_s), CHUNK_DTYPE)
    rows["us"] = np.round(times_s * 1e6)
    rows["tokens"] = tokens
    return rows


def answer(
    rng: np.random.Generator,
    index: int,
    *,
    tokens: int,
    tpot_s: float = 0.01,
    ttft_s: float | None = None,
    max_tokens: int = 512,
    queue_s: float | None = None,
    text: str | None = None,
    **changes: Any,
) -> tuple[RequestRecord, np.ndarray]:
    """An answered request: one token a chunk, gaps around ``tpot_s``."""
    sched = index * 0.05
    send = sched + rng.uniform(0.0001, 0.001)
    first = round(rng.gamma(4, 0.025) if ttft_s is None else ttft_s, 6)
    gaps = rng.gamma(8, tpot_s / 8, max(tokens - 1, 0))
    times = np.round(first + np.concatenate([[0.0], np.cumsum(gaps)]), 6)[: max(tokens, 0)]
    rows = chunk_rows(times, np.ones(len(times)))
    values: dict[str, Any] = {
        "index": index,
        "request_id": f"r{index}",
        "prompt_digest": prompt_digest([index]),
        "max_tokens": max_tokens,
        "t_sched_s": sched,
        "status": "ok",
        "input_tokens": 100 + index % 7,
        "prompt_tokens": 100 + index % 7,
        "t_send_s": send,
        "t_headers_s": send + first / 2,
        "t_first_s": send + float(times[0]) if len(times) else None,
        "t_last_s": send + float(times[-1]) if len(times) else None,
        "t_end_s": send + (float(times[-1]) if len(times) else first) + 0.001,
        "output_tokens": tokens,
        "output_tokens_source": "usage",
        "first_chunk_tokens": 1 if len(times) else None,
        "finish_reason": "length" if tokens >= max_tokens else "stop",
        "clock": "kernel",
        "queue_s": queue_s,
        "text": text,
    }
    return RequestRecord(**(values | changes)), rows


def failure(rng: np.random.Generator, index: int, status: str, cause: str) -> tuple[RequestRecord, np.ndarray]:
    sent = status != "unsent"
    sched = index * 0.05
    record = RequestRecord(
        index=index,
        request_id=f"r{index}",
        prompt_digest=prompt_digest([index]),
        max_tokens=512,
        t_sched_s=sched,
        status=status,  # type: ignore[arg-type]
        cause=cause,
        input_tokens=100,
        t_send_s=sched + rng.uniform(0.0001, 0.001) if sent else None,
        t_end_s=sched + 0.5 if sent else None,
    )
    return record, np.empty(0, CHUNK_DTYPE)


def write(
    path: Path,
    records: Iterator[tuple[RequestRecord, np.ndarray]] | list[tuple[RequestRecord, np.ndarray]],
    *,
    shards: int = 2,
    samples: list[ServerSample] | None = None,
    **changes: Any,
) -> RunDir:
    """A whole run folder."""
    made = list(records)
    run = RunDir.create(path, manifest(changes.pop("planned", len(made)), **changes))
    writers = [run.writer(f"worker-{number}") for number in range(shards)]
    for place, (record, rows) in enumerate(made):
        writers[place % shards].append(record, rows)
    for writer in writers:
        writer.close()
    for sample in samples or []:
        run.append_scrape(sample)
    return run


def mixed(path: Path, count: int = 200, seed: int = 1, **changes: Any) -> RunDir:
    """Answers of many lengths with every kind of failure among them, out of order, in two shards."""
    rng = np.random.default_rng(seed)
    kinds = {
        3: ("failed", "reset"),
        17: ("timeout", "timeout"),
        23: ("refused", "http_400"),
        31: ("unsent", "too_long"),
    }
    kinds |= {41: ("censored", "cut"), 57: ("failed", "reset")}
    made = [
        failure(rng, index, *kinds[index]) if index in kinds else answer(rng, index, tokens=int(rng.integers(1, 300)))
        for index in range(count)
    ]
    order = rng.permutation(count)
    return write(path, [made[place] for place in order], **changes)


def scrapes(points: list[tuple[float, dict[str, Any]]]) -> list[ServerSample]:
    return [ServerSample(t_s=t_s, **values) for t_s, values in points]


def arm(
    path: Path,
    lengths: list[int],
    *,
    seed: int = 0,
    change: Callable[[int], dict[str, Any]] | None = None,
    **manifests: Any,
) -> RunDir:
    """A run whose answers have the given lengths."""
    rng = np.random.default_rng(seed)
    made = [answer(rng, i, tokens=n, **(change(i) if change else {})) for i, n in enumerate(lengths)]
    return write(path, made, **manifests)
