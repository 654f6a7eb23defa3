"""A simulated load as an ordinary run folder, which reports and comparisons read like any other; it says what it is."""

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from kvload import __version__
from kvload.records import RequestRecord, RunManifest, ServerInfo, TraceInfo, prompt_digest
from kvload.rundir import CHUNK_DTYPE, RecordWriter, RunDir
from kvload.servers.simulator.cluster import Load, Served, token_times_s
from kvload.step_model import StepModel

NOTE = "simulated: no server was asked; times come from a model of step times"


def write_run(
    out: Path,
    served: Served,
    load: Load,
    model: StepModel,
    *,
    slo: Mapping[str, float],
    seed: int,
    trace: TraceInfo | None = None,
) -> RunDir:
    """Write a run folder.

    Args:
        out: a new folder.
        served: the simulation of ``load`` under ``model``.
        slo: limits in seconds, for the report.
        seed: of the simulation.
        trace: where the load came from.

    Raises:
        RunDirError: the folder cannot be written.
    """
    count = len(load)
    name = f"simulated {model.engine or 'server'}"
    caches = load.hits in {"counted", "reckoned"} and model.caches_prefixes
    info = ServerInfo(
        url="simulated://",
        engine=model.engine,
        engine_version=model.engine_version,
        model=model.model,
        method=model.method,
        pool_tokens=model.pool_tokens,
        device=model.device,
        prefix_cache="on" if caches else "off",
    )
    manifest = RunManifest(
        run_id=f"{time.time_ns():x}",
        kvload_version=__version__,
        servers=[msgspec.structs.replace(info, name=f"{name} {number}") for number in range(len(served.replicas))],
        trace=trace or TraceInfo(path="", sha256="", format="kvload", rows=count, used=count),
        mode="forced",
        seed=seed,
        arrivals={"kind": "simulated"},
        planned=count,
        slo=dict(slo),
        arm=model.method,
        notes=[NOTE],
    )
    run = RunDir.create(out, manifest)
    with RecordWriter(run.shard("simulated")) as writer:
        for place in range(count):
            writer.append(*_record(place, served, load))
    answered = ~np.isnan(served.e2e_s)
    end_s = float(np.max((load.arrival_s + served.e2e_s)[answered])) if answered.any() else 0.0
    run.update_manifest(
        sent=count, unsent=0, partial=False, ended="completed", started_at=time.time(), duration_s=end_s
    )
    return run


def _record(place: int, served: Served, load: Load) -> tuple[RequestRecord, npt.NDArray[np.void]]:
    request = served.requests[place]
    start_s = float(load.arrival_s[place])
    empty = np.zeros(0, CHUNK_DTYPE)
    prompt, output = request.prompt_tokens, request.output_tokens
    planned = RequestRecord(
        index=place,
        request_id=str(place),
        prompt_digest=prompt_digest(f"simulated/{place}/{prompt}"),
        max_tokens=output,
        min_tokens=output,
        ignore_eos=True,
        t_sched_s=start_s,
        t_send_s=start_s,
        input_tokens=prompt,
        status="refused",
        cause="pool",
        t_end_s=start_s,
        error="larger than the pool",
    )
    if request.refused:
        return planned, empty
    times_s = token_times_s(request, served.replicas[int(served.server[place])])
    times_s += start_s + served.e2e_s[place] - times_s[-1]
    times_s = np.maximum(times_s, start_s + served.ttft_s[place])
    chunks = np.zeros(len(times_s), CHUNK_DTYPE)
    chunks["us"] = np.round((times_s - start_s) * 1e6)
    chunks["tokens"] = 1
    record = msgspec.structs.replace(
        planned,
        status="ok",
        cause=None,
        error=None,
        server=int(served.server[place]),
        prompt_tokens=prompt,
        cached_tokens=request.cached_tokens,
        output_tokens=output,
        output_tokens_source="usage",
        first_chunk_tokens=1,
        finish_reason="length",
        http_status=200,
        t_first_s=float(times_s[0]),
        t_last_s=float(times_s[-1]),
        t_end_s=float(times_s[-1]),
        queue_s=float(served.queue_s[place]),
    )
    return record, chunks
