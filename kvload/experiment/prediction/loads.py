"""What is to be served: arrivals and lengths, from a trace or from what a run sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from kvload.analysis.records.cached import with_cached
from kvload.analysis.records.loading import load
from kvload.analysis.records.table import Floats, Ints, RecordTable
from kvload.errors import UsageError
from kvload.experiment.prediction.prefixes import blocks_of_run, prefixes_of
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.servers.simulator.cluster import Load
from kvload.untrusted import DECODE_ERRORS

if TYPE_CHECKING:
    from kvload.workloads.schedule.arrivals import ArrivalSpec


def read_loads(
    path: Path,
    *,
    rates: str | None,
    burstiness: float | None = None,
    speed: float = 1.0,
    seed: int = 0,
    format: str | None = None,  # noqa: A002
    limit: int | None = None,
    default_output: int | None = None,
    ramps: str | None = None,
    repeat: int = 1,
) -> dict[float, Load]:
    """The load of a trace at several rates, by the mean rate (requests a second) that each has.

    Args:
        rates: as in ``1,2,4``; the recorded arrivals, ``speed`` times as fast, where this and ``ramps`` are None.
        burstiness: shape of gamma gaps where a rate is given; Poisson where None.
        ramps: a rate over time, as in ``1-8/6h,8/2h``.
        repeat: how often the trace is taken, one time after the other.

    Returns:
        the rate is infinite where all requests arrive at once.

    Raises:
        TraceError: the trace cannot be read.
        UsageError: a rate does not parse, options exclude each other, or the trace has no lengths.
    """
    from kvload.workloads.schedule.arrivals import ArrivalSpec, parse_ramps

    made = rates is not None or ramps is not None
    if made and speed != 1.0:
        raise UsageError("a rate and times as fast as recorded exclude each other", where="--rate, --ramp, --speed")
    if not made and burstiness is not None:
        raise UsageError("recorded arrivals have gaps of their own", where="--burstiness", hint="give a --rate")
    shape = burstiness or 1.0
    if ramps is not None:
        if rates is not None:
            raise UsageError("give one of them", where="--rate, --ramp")
        specs = [ArrivalSpec(kind="gamma", ramps=parse_ramps(ramps), burstiness=shape, seed=seed)]
    elif rates is None:
        specs = [ArrivalSpec(kind="trace", speed=speed, seed=seed)]
    else:
        wanted = [_finite_rate(text) for text in rates.split(",")]
        specs = [ArrivalSpec(kind="gamma", rate=rate, burstiness=shape, seed=seed) for rate in wanted]
    loads = {}
    for spec in specs:
        if path.is_dir():
            found = load_of_folder(RunDir.open(path), times=repeat)
        else:
            found = read_trace_load(path, format=format, limit=limit, default_output=default_output, times=repeat)
        if not len(found):
            raise UsageError("no request of the run was answered", where=str(path))
        found = _again(found, spec, limit, repeat)
        loads[spec.rate or (len(found) / found.window_s if found.window_s else math.inf)] = found
    return loads


def _finite_rate(text: str) -> float:
    from kvload.units import parse_rate

    rate = parse_rate(text, where="--rate")
    if not math.isfinite(rate):
        raise UsageError("a load that comes all at once has no rate", where="--rate", hint="--rate 1000 is near it")
    return rate


def trace_or_run(name: str) -> Path:
    """Where a trace, a sample trace by its name, or a run folder lies.

    Raises:
        TraceError: there is none.
    """
    from kvload.workloads.traces.samples import trace_path

    return Path(name) if Path(name).is_dir() else trace_path(name)


def read_trace_load(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002
    limit: int | None = None,
    default_output: int | None = None,
    times: int = 1,
) -> Load:
    """The load of a trace: arrivals as recorded (NaN where they are not) and lengths.

    Args:
        format: the trace's, told by its content where None.
        limit: at most so many requests.
        default_output: tokens of an answer for which the trace records none.
        times: how often it is going to be served.

    Raises:
        TraceError: the trace cannot be read.
        UsageError: it has no lengths.
    """
    from itertools import islice

    from kvload.workloads.traces.formats import find_format, read_trace

    requests = list(islice(read_trace(path, find_format(path, format).name), limit))
    if not requests:
        raise UsageError("the trace has no requests", where=str(path))
    prompts, outputs = [], []
    for request in requests:
        length = request.input_length
        if length is None and request.prompt_token_ids is not None:
            length = len(request.prompt_token_ids)
        output = request.output_length or request.max_tokens or default_output
        if length is None or output is None:
            what = "the length of its prompt" if length is None else "the length of its answer"
            raise UsageError(
                f"request '{request.id}' does not say {what}",
                where=str(path),
                hint="give a run folder in its place, whose server counted tokens; --output-tokens N sets its answers",
            )
        prompts.append(max(1, length))
        outputs.append(max(1, output))
    recorded = np.array([np.nan if request.arrival is None else request.arrival for request in requests])
    sessions = {name: place for place, name in enumerate(dict.fromkeys(request.session for request in requests))}
    return Load(
        recorded,
        np.array(prompts),
        np.array(outputs),
        session=np.array([sessions[request.session] for request in requests]) if len(sessions) > 1 else None,
        prefixes=prefixes_of(
            [request.block_ids for request in requests],
            [request.block_size for request in requests],
            prompts,
            times=times,
        ),
    )


def load_of_folder(run: RunDir, table: RecordTable | None = None, *, times: int = 1) -> Load:
    """What a run sent, with the prefix hits that its server counted, or else what its trace says that prompts share.

    Args:
        table: its records, where they are read already.
        times: how often it is going to be served.

    Raises:
        RunDirError: the folder cannot be read.
    """
    manifest = run.manifest()
    table = with_cached(load(run) if table is None else table, manifest.servers)
    found = load_of_run(table)
    if all(server.prefix_cache == "off" for server in manifest.servers):
        return replace(found, cached_tokens=None, uncached=True)
    if found.hits == "counted":
        return found
    blocks = blocks_of_run(run, manifest)
    ids = [blocks.get(name, (None, None)) for name in table.request_id[rows_of_load(table)].tolist()]
    return replace(
        found,
        prefixes=prefixes_of(
            [one for one, _ in ids], [size for _, size in ids], found.prompt_tokens.tolist(), times=times
        ),
    )


def by_server(table: RecordTable, manifest: RunManifest) -> list[tuple[int, RecordTable]]:
    """The records of each server of a run, by its position; one server's where the run had one.

    Raises:
        UsageError: it had several, and a router's record does not say which of them answered.
    """
    answered = np.unique(table.server[table.ok]).tolist()
    if len(manifest.servers) > 1 and answered == [0]:
        raise UsageError(
            "the run was spread over several servers, and no record says which of them answered",
            where=manifest.server.url,
            hint="spread it with --url URL --url URL, or use a router that names its servers",
        )
    if len(answered) < 2:
        return [(answered[0] if answered else 0, table)]
    return [(place, table.take(np.flatnonzero(table.server == place))) for place in answered]


def load_of_run(table: RecordTable) -> Load:
    """What a run sent: arrivals as sent, lengths as counted, prefix hits where all of them are in the table.

    Requests without an answer are left out.
    """
    rows = rows_of_load(table)
    outputs = np.maximum(1, table.output_tokens[rows] - table.end_tokens[rows])
    cached = table.cached_tokens[rows]
    return Load(
        table.t_send_s[rows],
        _prompts(table)[rows].astype(np.int64),
        outputs.astype(np.int64),
        None if np.isnan(cached).any() else cached.astype(np.int64),
    )


def rows_of_load(table: RecordTable) -> Ints:
    """The rows of a run's table that :func:`load_of_run` takes, in its order."""
    known = table.ok & ~np.isnan(table.t_send_s) & ~np.isnan(table.output_tokens) & ~np.isnan(_prompts(table))
    rows = np.flatnonzero(known)
    ordered: Ints = rows[np.argsort(table.t_send_s[rows], kind="stable")]
    return ordered


def _prompts(table: RecordTable) -> Floats:
    found: Floats = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)
    return found


def _again(load_: Load, spec: ArrivalSpec, limit: int | None, repeat: int) -> Load:
    """A load's first requests, several times over, arriving as is wanted."""
    from kvload.workloads.schedule.arrivals import offsets

    rows = np.arange(len(load_))[:limit]
    recorded = load_.arrival_s[rows]
    # One round begins a mean gap after the one before has ended.
    round_s = float(recorded[-1] - recorded[0]) * len(rows) / max(1, len(rows) - 1) if len(rows) else 0.0
    recorded = (recorded + round_s * np.arange(repeat)[:, None]).ravel()
    rows = np.tile(rows, repeat)
    return replace(
        load_,
        arrival_s=offsets(recorded, spec),
        prompt_tokens=load_.prompt_tokens[rows],
        output_tokens=load_.output_tokens[rows],
        cached_tokens=None if load_.cached_tokens is None else load_.cached_tokens[rows],
        session=None if load_.session is None else load_.session[rows],
        prefixes=None if load_.prefixes is None else [load_.prefixes[row] for row in rows.tolist()],
    )


def other_arrivals(load_: Load, rate: float, burstiness: float, seed: int) -> Load:
    """The same requests arriving at other times of the same process."""
    from kvload.workloads.schedule.arrivals import ArrivalSpec, offsets

    spec = ArrivalSpec(kind="gamma", rate=rate, burstiness=burstiness, seed=seed)
    return replace(load_, arrival_s=offsets(load_.arrival_s, spec))


def read_ratios(path: Path, methods: Sequence[str]) -> dict[str, Floats]:
    """Ratios of answer lengths to the baseline's, by method: ``{"kivi-2": [1.0, 1.3, ...]}``.

    Args:
        path: what ``kvload lengths`` writes.
        methods: those that are wanted; one of them at least must be there.

    Raises:
        UsageError: it cannot be read, a ratio is not above 0, or it is of other methods.
    """
    try:
        lists = msgspec.json.decode(path.read_bytes(), type=dict[str, list[float]])
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except DECODE_ERRORS as error:
        raise UsageError(
            f"holds no ratios by method: {error}", where=str(path), hint="kvload lengths COMPARISON -o FILE makes one"
        ) from error
    if any(not (0 < ratio < float("inf")) for ratios in lists.values() for ratio in ratios):
        raise UsageError("ratios are above 0", where=str(path))
    if not set(lists) & set(methods):
        known = ", ".join(lists) or "none"
        raise UsageError(f"has no ratios of {', '.join(methods)}", where=str(path), hint=f"there are: {known}")
    return {method: np.array(ratios) for method, ratios in lists.items()}


def told_ratios(ratios: Mapping[str, Floats], methods: Sequence[str]) -> list[str]:
    """What ratios do to each method's answers, a sentence for each; the first method is the baseline."""
    found = []
    for method in methods:
        values = ratios.get(method)
        if values is not None and len(values):
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
            found.append(f"{method}: answers drawn {middle:.2f} times as long ({low:.2f} to {high:.2f})")
        elif method != methods[0]:
            found.append(f"{method}: no ratios of its answers' lengths; taken as long as the trace says")
    return found
