"""Requests of a trace as they will be sent: each with its moment, its body and the most tokens of its answer.

Answers are bounded by these rules.

- *free* mode: ``max_tokens`` is the trace's own; else the user's default; else four times the recorded length but at
  least 256; else 1024. It is cut to what the server's limit leaves beside the prompt (to half the limit where the
  prompt's length is not known).
- *forced* mode: ``min_tokens`` = ``max_tokens`` = the recorded length (at least 1), with ``ignore_eos``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from kvload.errors import TraceError
from kvload.workloads.schedule.arrivals import ArrivalSpec, offsets
from kvload.workloads.schedule.prompts import PromptSpec, token_ids
from kvload.workloads.schedule.request import (
    CHAT,
    COMPLETIONS,
    FollowUp,
    PlannedRequest,
    digest_of,
    request_body,
)
from kvload.workloads.traces import fitting
from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

Mode = Literal["free", "forced"]

_INHERITED = ("tools", "tool_choice", "parallel_tool_calls")
"""Fields that a later turn takes over from the one before it, where it has none of its own."""

GENEROUS_FACTOR, GENEROUS_MINIMUM, UNKNOWN_MAX_TOKENS = 4, 256, 1024


class Planner:
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
        """Every request in the trace's order.

        Raises:
            TraceError: the turns of a conversation go backwards, or a request asks for what cannot be sent.
        """
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
            return need(request, "forced")
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


def need(request: TraceRequest, mode: Mode) -> int:
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
