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
from kvload.records import TraceInfo, prompt_digest
from kvload.workloads import lengths
from kvload.workloads.arrivals import ArrivalSpec, offsets
from kvload.workloads.formats import find_format, read_trace
from kvload.workloads.lengths import TooLong
from kvload.workloads.prompts import PromptSpec, made_up_ids, token_ids
from kvload.workloads.selection import Selection, SelectionCounts, select
from kvload.workloads.trace import TraceRequest, continues_conversation

Mode = Literal["free", "forced"]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GENEROUS_FACTOR, GENEROUS_MINIMUM, UNKNOWN_MAX_TOKENS = 4, 256, 1024


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a later turn's request out of the conversation so far.

    Attributes:
        kind: what the conversation is made of, and so which of the next three holds what is new in this turn.
        fields: the request without its prompt.
        filler: makes token ids in place of the server's, should it not tell them.
    """

    kind: Literal["messages", "prompt", "token_ids"]
    messages: list[dict[str, Any]] = []
    prompt: str = ""
    token_ids: list[int] = []
    fields: dict[str, Any]
    filler: PromptSpec


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the schedule.

    Attributes:
        index: position in the whole schedule, the same for every worker and arm.
        offset_s: when it is due, in seconds from the run's zero; a later turn starts no sooner than this, and not
            before the former turn's end plus ``think_time_s``.
        path: ``/v1/completions`` or ``/v1/chat/completions``.
        body: the whole JSON request; empty where ``follow_up`` is given, see :func:`next_turn`.
        prompt_digest: digest of the prompt; of a turn that is still to be built, of the former turn's digest and what
            this turn adds.
        input_tokens: the prompt's length where it is known; of a later turn, of what is new in it.
        previous: index of the turn before this one, which must have ended; None for the first.
    """

    index: int
    offset_s: float
    request_id: str
    path: str
    body: bytes
    prompt_digest: str
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    input_tokens: int | None = None
    session: str | None = None
    turn: int | None = None
    think_time_s: float = 0.0
    previous: int | None = None
    follow_up: FollowUp | None = None
    expected: str | None = None
    scorer: str | None = None
    task: str | None = None


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
        too_long: what to do about requests beyond it, see :func:`kvload.workloads.lengths.fit`.
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
        scaled = [lengths.scale_input(request, scale_input) for request in chosen]
        changed = sum(after is not before for after, before in zip(scaled, chosen, strict=True))
        notes.append(f"{changed} of {len(chosen)} prompts scaled by {scale_input:g}")
        chosen = scaled
    needs = [_need(request, mode) for request in chosen]
    fitted = lengths.fit(chosen, needs, max_model_len, too_long)
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


def shard(planned: Sequence[PlannedRequest], worker: int, workers: int) -> list[PlannedRequest]:
    """The part of the schedule that worker ``worker`` of ``workers`` sends: by index, a conversation staying together.

    The union over all workers is the whole schedule, each request once.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} of {workers}")
    roots: dict[int, int] = {}
    for request in planned:
        roots[request.index] = request.index if request.previous is None else roots[request.previous]
    return [request for request in planned if roots[request.index] % workers == worker]


def next_turn(
    turn: PlannedRequest,
    former: PlannedRequest,
    *,
    text: str,
    token_ids: Sequence[int] | None = None,
    output_tokens: int | None = None,
) -> PlannedRequest:
    """The turn with its body and digest, made of the former turn as sent, the server's answer to it, and what is new.

    Args:
        turn: a planned turn; returned as it is where it is complete already.
        former: the turn before it, with its body.
        text: the server's answer to it.
        token_ids: the answer's token ids, where the server told them.
        output_tokens: how many tokens the answer had; so many made-up ones stand in for ids that are not known.
    """
    new = turn.follow_up
    if new is None:
        return turn
    sent = msgspec.json.decode(former.body)
    if new.kind == "messages":
        conversation: Any = [*sent["messages"], {"role": "assistant", "content": text}, *new.messages]
    elif new.kind == "prompt":
        conversation = sent["prompt"] + text + new.prompt
    else:
        if token_ids is None:
            answer = made_up_ids(f"answer/{former.request_id}", output_tokens or 0, new.filler)
        else:
            answer = list(token_ids)
        conversation = sent["prompt"] + answer + new.token_ids
    return msgspec.structs.replace(
        turn, body=_body(turn.path, conversation, new.fields), prompt_digest=_digest(conversation)
    )


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
        digest = _digest(new)
        if former is not None and continues_conversation(request):
            if former.path != path or (former.follow_up and former.follow_up.kind != kind):
                raise TraceError(f"request '{request.id}': its session changes between chat, text and token ids")
            digest = prompt_digest(f"{former.prompt_digest} {digest}")
            follow_up = FollowUp(kind=kind, fields=fields, filler=self.prompts, **{kind: new})
        return PlannedRequest(
            index=index,
            offset_s=offset_s,
            request_id=request.id,
            path=path,
            body=b"" if follow_up else _body(path, new, fields),
            prompt_digest=digest,
            max_tokens=max_tokens,
            min_tokens=max_tokens if forced else 0,
            ignore_eos=forced,
            temperature=_number(request, sampling, "temperature", 0.0),
            top_p=_number(request, sampling, "top_p", 1.0),
            seed=sampling.get("seed"),
            input_tokens=len(new) if kind == "token_ids" else lengths.input_tokens(request),
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
        size = lengths.input_tokens(request)
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


def _digest(prompt: Any) -> str:
    """:func:`kvload.records.prompt_digest`, by the fast encoder where it is token ids, whose JSON is the same."""
    if isinstance(prompt, list) and prompt and type(prompt[0]) is int:
        return hashlib.sha256(msgspec.json.encode(prompt)).hexdigest()[:32]
    return prompt_digest(prompt)


def _body(path: str, prompt: Any, fields: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"messages" if path == CHAT else "prompt": prompt, **fields})


def _number(request: TraceRequest, sampling: Mapping[str, Any], name: str, default: float) -> float:
    value = sampling.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TraceError(f"request '{request.id}': sampling field '{name}' is {value!r}, not a number")
    return float(value)


def _check_unique(requests: Sequence[TraceRequest]) -> None:
    names, times = Counter(request.id for request in requests).most_common(1)[0]
    if times > 1:
        raise TraceError(f"id '{names}' is given to {times} requests: ids must be unique")
