"""The plan of a replay: every request with its moment and its ready body, made once before the run starts.

Answers are bounded by these rules.

- *free* mode: ``max_tokens`` is the trace's own; else the user's default; else four times the recorded length but at
  least 256; else 1024. It is cut to what the server's limit leaves beside the prompt (to half the limit where the
  prompt's length is not known).
- *forced* mode: ``min_tokens`` = ``max_tokens`` = the recorded length (at least 1), with ``ignore_eos``.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from kvload.errors import TraceError
from kvload.records import TraceInfo
from kvload.workloads.schedule.arrivals import ArrivalSpec, offsets
from kvload.workloads.schedule.prompts import PromptSpec, token_ids
from kvload.workloads.schedule.request import (
    CHAT,
    COMPLETIONS,
    FollowUp,
    PlannedRequest,
    digest_of,
    next_turn,
    request_body,
    shard,
)
from kvload.workloads.traces import fitting
from kvload.workloads.traces.fitting import TooLong
from kvload.workloads.traces.formats import find_format, read_trace
from kvload.workloads.traces.selection import Selection, SelectionCounts, select
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

__all__ = ["Mode", "PlannedRequest", "Schedule", "block_reuse", "build_schedule", "load_schedule", "next_turn", "shard"]

Mode = Literal["free", "forced"]

GENEROUS_FACTOR, GENEROUS_MINIMUM, UNKNOWN_MAX_TOKENS = 4, 256, 1024


@dataclass(frozen=True)
class Schedule:
    """A whole plan.

    ``trace`` says where it comes from and what was changed; ``notes`` are for the user to read.
    """

    planned: list[PlannedRequest]
    trace: TraceInfo
    arrivals: dict[str, Any]
    mode: Mode
    notes: list[str] = field(default_factory=list)

    @property
    def span_s(self) -> float:
        """The last offset."""
        return max((request.offset_s for request in self.planned), default=0.0)


def load_schedule(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002
    sort: bool = False,
    **options: Any,
) -> Schedule:
    """Read a trace file and plan its replay; ``options`` are those of :func:`build_schedule`.

    Raises:
        TraceError: the file is malformed or its requests do not make a schedule.
    """
    found = find_format(path, format)
    schedule = build_schedule(read_trace(path, found.name, sort=sort), **options)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    trace = msgspec.structs.replace(schedule.trace, path=path.name, sha256=digest, format=found.name)
    return Schedule(schedule.planned, trace, schedule.arrivals, schedule.mode, schedule.notes)


def build_schedule(
    requests: Iterable[TraceRequest],
    *,
    model: str,
    mode: Mode = "free",
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
) -> Schedule:
    """Plan the replay of a trace.

    Args:
        requests: the trace, in the order of arrival.
        model: the name the server knows its model by.
        mode: ``free`` (natural ends) or ``forced`` (recorded lengths).
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

    Raises:
        TraceError: there is nothing to send, ids repeat, or a request does not fit the mode or the server.
    """
    spec = arrivals or ArrivalSpec()
    selection = Selection(spec.start_s, spec.end_s, sample, limit, spec.seed)
    counts = SelectionCounts()
    chosen = list(select(iter(requests), selection, counts))
    notes = []
    if counts.headless:
        notes.append(f"{counts.headless} later turns left out: their conversation begins outside the part that is used")
    if not chosen:
        raise TraceError("no request is left to send", hint="check --start, --end, --sample")
    _check_unique(chosen)
    if scale_input != 1.0:
        scaled = [fitting.scale_input(request, scale_input) for request in chosen]
        changed = sum(after is not before for after, before in zip(scaled, chosen, strict=True))
        notes.append(f"{changed} of {len(chosen)} prompts scaled by {scale_input:g}")
        chosen = scaled
    needs = [_need(request, mode) for request in chosen]
    fitted = fitting.fit(chosen, needs, max_model_len, too_long)
    notes += fitted.changes
    planner = _Planner(model, mode, prompts or PromptSpec(), default_max_tokens, max_model_len)
    planner.sampling = dict(sampling or {})
    planner.return_token_ids = return_token_ids
    planned = planner.plan(fitted.requests, spec)
    notes += planner.notes()
    if not planned:
        raise TraceError("no request is left to send", hint="all are longer than the server's limit: --too-long cap")
    trace = TraceInfo(
        path="",
        sha256="",
        format="",
        rows=counts.rows,
        used=len(planned),
        changes=notes,
        block_reuse=block_reuse(fitted.requests),
    )
    return Schedule(planned, trace, spec.as_dict(), mode, notes)


def block_reuse(requests: Iterable[TraceRequest]) -> float | None:
    """Share of the prompts' blocks whose id came before in the trace; None where there are no block ids."""
    seen: set[int] = set()
    total = 0
    for request in requests:
        if request.block_ids:
            total += len(request.block_ids)
            seen.update(request.block_ids)
    return 1 - len(seen) / total if total else None


class _Planner:
    """Makes planned requests of trace requests, and counts what it had to decide."""

    def __init__(
        self, model: str, mode: Mode, prompts: PromptSpec, default_max_tokens: int | None, max_model_len: int | None
    ) -> None:
        self.model = model
        self.mode = mode
        self.prompts = prompts
        self.default_max_tokens = default_max_tokens
        self.max_model_len = max_model_len
        self.sampling: dict[str, Any] = {}
        self.return_token_ids = False
        self._clipped = 0
        self._empty = 0

    def plan(self, requests: Sequence[TraceRequest], spec: ArrivalSpec) -> list[PlannedRequest]:
        last_turn: dict[str, int] = {}
        turns: list[int | None] = []
        previous: list[int | None] = []
        for index, request in enumerate(requests):
            former = None if request.session is None else last_turn.get(request.session)
            turn = request.turn
            if request.session is not None:
                before = -1 if former is None else (turns[former] or 0)
                turn = before + 1 if turn is None else turn
                if turn <= before:
                    raise TraceError(
                        f"request '{request.id}': turn {turn} of '{request.session}' comes after turn {before}"
                    )
                last_turn[request.session] = index
            turns.append(turn)
            previous.append(former)
        due = self._due(requests, previous, spec)
        with_successor = {index for index in previous if index is not None}
        planned: list[PlannedRequest] = []
        for index, request in enumerate(requests):
            former = previous[index]
            planned.append(
                self._request(
                    request,
                    index=index,
                    offset_s=due[index],
                    turn=turns[index],
                    former=None if former is None else planned[former],
                    is_continued=index in with_successor,
                )
            )
        return planned

    def notes(self) -> list[str]:
        found = []
        if self._clipped:
            found.append(f"max_tokens of {self._clipped} requests cut to what the server's limit leaves")
        if self._empty:
            found.append(f"{self._empty} requests with a recorded length of 0 ask for 1 token")
        return found

    @staticmethod
    def _due(requests: Sequence[TraceRequest], previous: Sequence[int | None], spec: ArrivalSpec) -> list[float]:
        """Offsets: first turns, and later ones with an arrival of their own, form the arrival process."""
        timed = [i for i, request in enumerate(requests) if previous[i] is None or request.arrival is not None]
        recorded = [requests[i].arrival for i in timed]
        made = offsets(np.array([np.nan if at is None else at for at in recorded]), spec)
        due = dict(zip(timed, made.tolist(), strict=True))
        for i, former in enumerate(previous):
            if i not in due and former is not None:
                due[i] = due[former]
        return [due[i] for i in range(len(requests))]

    def _request(
        self,
        request: TraceRequest,
        *,
        index: int,
        offset_s: float,
        turn: int | None,
        former: PlannedRequest | None,
        is_continued: bool,
    ) -> PlannedRequest:
        sampling = {"temperature": 0, **request.sampling, **self.sampling}
        path = COMPLETIONS if request.messages is None else CHAT
        kind: Literal["messages", "prompt", "token_ids"]
        new: Any
        if request.messages is not None:
            kind, new = "messages", request.messages
        elif request.prompt is not None:
            kind, new = "prompt", request.prompt
        else:
            kind, new = "token_ids", token_ids(request, self.prompts)
        max_tokens = self._max_tokens(request)
        forced = self.mode == "forced"
        fields: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, **sampling}
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if forced:
            fields |= {"min_tokens": max_tokens, "ignore_eos": True}
        if self.return_token_ids or (is_continued and kind == "token_ids"):
            fields["return_token_ids"] = True
        follow_up = None
        digest = digest_of(new)
        if former is not None and continues_conversation(request):
            if former.path != path or (former.follow_up and former.follow_up.kind != kind):
                raise TraceError(f"request '{request.id}': its session changes between chat, text and token ids")
            digest = digest_of(f"{former.prompt_digest} {digest}")
            follow_up = FollowUp(kind=kind, fields=fields, filler=self.prompts, **{kind: new})
        return PlannedRequest(
            index=index,
            offset_s=offset_s,
            request_id=request.id,
            path=path,
            body=b"" if follow_up else request_body(path, new, fields),
            prompt_digest=digest,
            max_tokens=max_tokens,
            min_tokens=max_tokens if forced else 0,
            ignore_eos=forced,
            temperature=_number(request, sampling, "temperature", 0.0),
            top_p=_number(request, sampling, "top_p", 1.0),
            seed=sampling.get("seed"),
            input_tokens=len(new) if kind == "token_ids" else fitting.input_tokens(request),
            session=request.session,
            turn=turn,
            think_time_s=request.think_time or 0.0 if former else 0.0,
            previous=None if former is None else former.index,
            follow_up=follow_up,
            expected=request.expected,
            scorer=request.scorer,
            task=request.task,
        )

    def _max_tokens(self, request: TraceRequest) -> int:
        self._empty += request.output_length == 0
        if self.mode == "forced":
            return _need(request, "forced")
        if request.max_tokens is not None:
            wanted = max(request.max_tokens, 1)
        elif self.default_max_tokens is not None:
            wanted = self.default_max_tokens
        elif request.output_length is not None:
            wanted = max(GENEROUS_FACTOR * request.output_length, GENEROUS_MINIMUM)
        else:
            wanted = UNKNOWN_MAX_TOKENS
        if self.max_model_len is None:
            return wanted
        size = fitting.input_tokens(request)
        room = self.max_model_len // 2 if size is None else self.max_model_len - size
        self._clipped += wanted > room
        return max(min(wanted, room), 1)


def _need(request: TraceRequest, mode: Mode) -> int:
    """Tokens of answer that must fit beside the prompt."""
    if mode == "forced":
        recorded = request.output_length if request.output_length is not None else request.max_tokens
        if recorded is None:
            raise TraceError(f"request '{request.id}' has no output_length to force", hint="use --mode free")
        return max(recorded, 1)
    known = request.max_tokens if request.max_tokens is not None else request.output_length
    return max(known or 1, 1)


def _number(request: TraceRequest, sampling: Mapping[str, Any], name: str, default: float) -> float:
    value = sampling.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"request '{request.id}': sampling field '{name}' is {value!r}, not a number")
    return float(value)


def _check_unique(requests: Sequence[TraceRequest]) -> None:
    names, times = Counter(request.id for request in requests).most_common(1)[0]
    if times > 1:
        raise TraceError(f"id '{names}' is given to {times} requests: ids must be unique")
