"""The plan of a replay: every request with its moment and its ready body, made once before the run starts.

Where the mode is left to the trace (*auto*), answers are forced if every prompt is made up from lengths and every
answer's length was recorded: what a model says to made-up tokens, and for how long, means nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from kvload.errors import TraceError
from kvload.records import TraceInfo
from kvload.workloads.schedule.arrivals import ArrivalSpec
from kvload.workloads.schedule.options import ModeChoice, ScheduleOptions
from kvload.workloads.schedule.planner import Mode, Planner, need
from kvload.workloads.schedule.prompts import PromptSpec
from kvload.workloads.schedule.request import PlannedRequest
from kvload.workloads.schedule.texts import TokenCounter, measured
from kvload.workloads.traces import fitting
from kvload.workloads.traces.fitting import TooLong
from kvload.workloads.traces.formats import find_format, read_trace
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.selection import Selection, SelectionCounts, select
from kvload.workloads.traces.trace import TraceRequest


@dataclass(frozen=True)
class Schedule:
    """A whole plan.

    ``trace`` says where it comes from and what was changed; ``notes`` are for the user to read, ``mode_reason`` first.
    """

    planned: list[PlannedRequest]
    trace: TraceInfo
    arrivals: dict[str, Any]
    mode: Mode
    notes: list[str] = field(default_factory=list)
    mode_reason: str = ""

    @property
    def span_s(self) -> float:
        """The last offset."""
        return max((request.offset_s for request in self.planned), default=0.0)


def load_schedule(
    path: Path,
    options: ScheduleOptions,
    *,
    model: str,
    vocabulary: int | None = None,
    max_model_len: int | None = None,
    served_models: Callable[[], Collection[str]] | None = None,
    count_tokens: TokenCounter | None = None,
) -> Schedule:
    """Read a trace file and plan its replay.

    Args:
        options: how it is read and what is made of it.
        vocabulary: tokens of the model's vocabulary, where they are known.
        model, max_model_len, served_models, count_tokens: see :func:`build_schedule`.

    Raises:
        TraceError: the file is malformed or its requests do not make a schedule.
    """
    found = find_format(path, options.format)
    notes = Notes()
    requests = read_trace(
        path,
        found.name,
        sort=options.sort,
        time_unit=options.time_unit,
        block_tokens=options.block_tokens,
        notes=notes,
    )
    schedule = build_schedule(
        requests,
        model=model,
        mode=options.mode,
        arrivals=options.arrivals,
        prompts=options.prompts(vocabulary),
        default_max_tokens=options.default_max_tokens,
        max_model_len=max_model_len,
        too_long=options.too_long,
        scale_input=options.scale_input,
        limit=options.limit,
        sample=options.sample,
        sampling=options.sampling,
        return_token_ids=options.return_token_ids,
        served_models=served_models,
        count_tokens=count_tokens,
        notes=notes,
    )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    trace = msgspec.structs.replace(schedule.trace, path=path.name, sha256=digest, format=found.name)
    return replace(schedule, trace=trace)


def count_requests(path: Path, options: ScheduleOptions) -> int:
    """How many requests of a trace file are used, before any of them is planned.

    Raises:
        TraceError: the file is malformed.
    """
    requests = read_trace(
        path, options.format, sort=options.sort, time_unit=options.time_unit, block_tokens=options.block_tokens
    )
    spec = options.arrivals
    selection = Selection(spec.start_s, spec.end_s, options.sample, options.limit, spec.seed)
    return sum(1 for _ in select(iter(requests), selection, SelectionCounts()))


def build_schedule(
    requests: Iterable[TraceRequest],
    *,
    model: str,
    mode: ModeChoice = "free",
    arrivals: ArrivalSpec | None = None,
    prompts: PromptSpec | None = None,
    default_max_tokens: int | None = None,
    max_model_len: int | None = None,
    too_long: TooLong = "error",
    scale_input: float = 1.0,
    limit: int | None = None,
    sample: float = 1.0,
    sampling: Mapping[str, Any] | None = None,
    return_token_ids: bool = False,
    served_models: Callable[[], Collection[str]] | None = None,
    count_tokens: TokenCounter | None = None,
    notes: Notes | None = None,
) -> Schedule:
    """Plan the replay of a trace.

    Args:
        requests: the trace, in the order of arrival.
        model: the name the server knows its model by.
        mode: ``free`` (natural ends), ``forced`` (recorded lengths), or ``auto``: what the trace is made for.
        arrivals: when requests are due; as recorded where None.
        prompts: how prompts are made up for length-only requests.
        default_max_tokens: cap of answers for which the trace has none (free mode).
        max_model_len: the server's limit on prompt and answer together, in tokens.
        too_long: what to do about requests beyond it, see :func:`kvload.workloads.traces.fitting.fit`.
        scale_input: factor on the length of made-up prompts, before anything else.
        limit: at most so many requests.
        sample: share of sessions to keep.
        sampling: fields that override the trace's, such as ``temperature``; without either temperature is 0 and no seed
            is sent.
        return_token_ids: ask the server for the answers' token ids.
        served_models: asked for the models that the server serves, if a row names one; a row's own model is asked for
            where it is among them. None asks for ``model`` always.
        count_tokens: asked for the length of texts that may not fit the server's limit; where None, or where it does
            not tell, it is estimated.
        notes: what was noted while the requests were read.

    Raises:
        TraceError: there is nothing to send, ids repeat, or a request does not fit the mode or the server.
    """
    spec = arrivals or ArrivalSpec()
    selection = Selection(spec.start_s, spec.end_s, sample, limit, spec.seed)
    counts = SelectionCounts()
    chosen = list(select(iter(requests), selection, counts))
    changes = [] if notes is None else notes.sentences()
    if counts.headless:
        changes.append(
            f"{counts.headless} later turns left out: their conversation begins outside the part that is used"
        )
    if not chosen:
        raise TraceError("no request is left to send", hint="check --start, --end, --sample")
    _check_unique(chosen)
    if scale_input != 1.0:
        scaled = [fitting.scale_input(request, scale_input) for request in chosen]
        changed = sum(after is not before for after, before in zip(scaled, chosen, strict=True))
        changes.append(f"{changed} of {len(chosen)} prompts scaled by {scale_input:g}")
        chosen = scaled
    settled, reason = settle_mode(chosen, mode)
    needs = [need(request, settled) for request in chosen]
    texts = measured(chosen, needs, max_model_len, count_tokens)
    fitted = fitting.fit(
        texts.requests,
        needs,
        max_model_len,
        too_long,
        estimates=texts.estimates,
        conversations=texts.conversations,
    )
    changes += fitted.changes
    planner = Planner(model, settled, prompts or PromptSpec(), default_max_tokens, max_model_len)
    planner.served_models = served_models
    planner.sampling = dict(sampling or {})
    planner.return_token_ids = return_token_ids
    planner.conversations = {chosen[index].id: size for index, size in texts.conversations.items()}
    planned = planner.plan(fitted.requests, spec)
    changes += planner.notes.sentences()
    if not planned:
        raise TraceError("no request is left to send", hint="all are longer than the server's limit: --too-long cap")
    trace = TraceInfo(
        path="",
        sha256="",
        format="",
        rows=counts.rows,
        used=len(planned),
        changes=changes,
        block_reuse=block_reuse(fitted.requests),
        limited=limit is not None and len(chosen) >= limit,
    )
    return Schedule(planned, trace, spec.as_dict(), settled, changes, reason)


def settle_mode(requests: Sequence[TraceRequest], mode: ModeChoice) -> tuple[Mode, str]:
    """The mode that requests are sent in, and a sentence that says which and why."""
    if mode != "auto":
        what = "answers are as long as recorded" if mode == "forced" else "answers end by themselves"
        return mode, f"mode {mode}, as asked: {what}"
    made_up = sum(fitting.is_made_up(request) for request in requests)
    unknown = sum(request.output_length is None for request in requests)
    if made_up == len(requests) and not unknown:
        return "forced", (
            "mode forced: the trace has lengths and no texts, so answers are as long as recorded "
            "(--mode free lets them end by themselves)"
        )
    if made_up == len(requests):
        why = f"{unknown:,} of {len(requests):,} requests have no recorded length to force"
    elif made_up:
        why = f"{len(requests) - made_up:,} of {len(requests):,} prompts are given, not made up from lengths"
    else:
        why = "the trace has its prompts"
    return "free", f"mode free: {why}, so answers end by themselves (--mode forced makes them as long as recorded)"


def block_reuse(requests: Iterable[TraceRequest]) -> float | None:
    """Share of the prompts' blocks whose id came before in the trace; None where there are no block ids."""
    seen: set[int] = set()
    total = 0
    for request in requests:
        if request.block_ids:
            total += len(request.block_ids)
            seen.update(request.block_ids)
    return 1 - len(seen) / total if total else None


def _check_unique(requests: Sequence[TraceRequest]) -> None:
    names, times = Counter(request.id for request in requests).most_common(1)[0]
    if times > 1:
        raise TraceError(f"id '{names}' is given to {times} requests: ids must be unique")
