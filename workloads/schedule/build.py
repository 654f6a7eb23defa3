"""The plan of a replay: every request with its moment and its ready body, made once before the run starts.

Answers are bounded by these rules.

- *free* mode: ``max_tokens`` is the trace's own; else the user's default; else four times the recorded length but at
  least 256; else 1024. It is cut to what the server's limit leaves beside the prompt (to half the limit where the
  prompt's length is not known).
- *forced* mode: ``min_tokens`` = ``max_tokens`` = the recorded length (at least 1), with ``ignore_eos``.

Where the mode is left to the trace (*auto*), answers are forced if every prompt is made up from lengths and every
answer's length was recorded: what a model says to made-up tokens, and for how long, means nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from kvload.errors import TraceError
from kvload.records import TraceInfo
from kvload.workloads.schedule.arrivals import ArrivalSpec, offsets
from kvload.workloads.schedule.options import ModeChoice, ScheduleOptions
from kvload.workloads.schedule.prompts import PromptSpec, token_ids
from kvload.workloads.schedule.request import (
    CHAT,
    COMPLETIONS,
    FollowUp,
    PlannedRequest,
    digest_of,
    next_turn,
    request_body,
)
from kvload.workloads.schedule.texts import TokenCounter, measured
from kvload.workloads.traces import fitting
from kvload.workloads.traces.fitting import TooLong
from kvload.workloads.traces.formats import find_format, read_trace
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.selection import Selection, SelectionCounts, select
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

__all__ = ["Mode", "PlannedRequest", "Schedule", "block_reuse", "build_schedule", "load_schedule", "next_turn"]

Mode = Literal["free", "forced"]

_INHERITED = ("tools", "tool_choice", "parallel_tool_calls")
"""Fields that a later turn takes over from the one before it, where it has none of its own."""

GENEROUS_FACTOR, GENEROUS_MINIMUM, UNKNOWN_MAX_TOKENS = 4, 256, 1024


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
    needs = [_need(request, settled) for request in chosen]
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
    planner = _Planner(model, settled, prompts or PromptSpec(), default_max_tokens, max_model_len)
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
        self.conversations: Mapping[str, int] = {}
        self.served_models: Callable[[], Collection[str]] | None = None
        self.notes = Notes()
        self._served: Collection[str] | None = None

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
        tools: dict[int, dict[str, Any]] = {}
        for index, request in enumerate(requests):
            former = previous[index]
            if former is not None and continues_conversation(request):
                # what the assistant may call stays said until a turn says otherwise
                given = {**tools.get(former, {}), **request.sampling}
                request = msgspec.structs.replace(request, sampling=given)  # noqa: PLW2901
            tools[index] = {name: request.sampling[name] for name in _INHERITED if name in request.sampling}
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
        if self.mode == "forced":
            sampling |= {"min_tokens": max_tokens, "ignore_eos": True}
        fields: dict[str, Any] = {"model": self._model(request), "max_tokens": max_tokens, **sampling}
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
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
            min_tokens=_whole(request, sampling, "min_tokens") or 0,
            ignore_eos=_flag(request, sampling, "ignore_eos"),
            temperature=_number(request, sampling, "temperature", 0.0),
            top_p=_number(request, sampling, "top_p", 1.0),
            seed=_whole(request, sampling, "seed"),
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

    def _model(self, request: TraceRequest) -> str:
        """The row's own model where the server serves it, else the run's."""
        wanted = request.model
        if wanted is None or wanted == self.model:
            return self.model
        if self.served_models is not None and self._served is None:
            self._served = self.served_models()
        if wanted in (self._served or ()):
            return wanted
        self.notes.group(f"models that the server does not serve, asked as '{self.model}'", wanted)
        return self.model

    def _max_tokens(self, request: TraceRequest) -> int:
        if request.output_length == 0:
            self.notes.rows("a recorded length of 0 asks for 1 token")
        if self.mode == "forced":
            return _need(request, "forced")
        if request.max_tokens is not None:
            wanted = max(request.max_tokens, 1)
        elif self.default_max_tokens is not None:
            wanted = self.default_max_tokens
        elif request.output_length and _flag(request, request.sampling, "ignore_eos"):
            wanted = request.output_length
        elif request.output_length is not None:
            wanted = max(GENEROUS_FACTOR * request.output_length, GENEROUS_MINIMUM)
        else:
            wanted = UNKNOWN_MAX_TOKENS
        least = _whole(request, request.sampling, "min_tokens") or 0
        if least > wanted and request.max_tokens is not None:
            raise TraceError(f"request '{request.id}' wants at least {least} tokens and at most {wanted}")
        wanted = max(wanted, least)
        if self.max_model_len is None:
            return wanted
        size = self.conversations.get(request.id, fitting.input_tokens(request))
        room = self.max_model_len // 2 if size is None else self.max_model_len - size
        if wanted > room:
            self.notes.rows("max_tokens is cut to what the server's limit leaves")
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


def _whole(request: TraceRequest, sampling: Mapping[str, Any], name: str) -> int | None:
    value = sampling.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63):
        raise TraceError(f"request '{request.id}': sampling field '{name}' is {value!r}, not a whole number")
    return value


def _flag(request: TraceRequest, sampling: Mapping[str, Any], name: str) -> bool:
    value = sampling.get(name)
    if value is not None and not isinstance(value, bool):
        raise TraceError(f"request '{request.id}': sampling field '{name}' is {value!r}, not true or false")
    return bool(value)


def _number(request: TraceRequest, sampling: Mapping[str, Any], name: str, default: float) -> float:
    value = sampling.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"request '{request.id}': sampling field '{name}' is {value!r}, not a number")
    return float(value)


def _check_unique(requests: Sequence[TraceRequest]) -> None:
    names, times = Counter(request.id for request in requests).most_common(1)[0]
    if times > 1:
        raise TraceError(f"id '{names}' is given to {times} requests: ids must be unique")
