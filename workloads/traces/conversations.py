"""Tells whole prompts from new parts: what a later turn of a conversation gives, where its format leaves that open.

A turn whose prompt begins with the previous turn's is the whole prompt of its moment. One whose block ids do not begin
with the former's whole blocks, or that is shorter than the former was, gives only what is new: sent alone it would be a
fraction of the conversation it stands for.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from kvload.workloads.traces.notes import Notes
from kvload.workloads.traces.trace import TraceRequest, continues_conversation

_TOLD_APART_CHARACTERS = 16
"""A shorter text may begin a later one by chance ("Hi", "Hit the lights")."""

_NEW = (
    "later turns whose blocks do not begin with the turn before: read as what is new in them, sent after the "
    "conversation so far"
)
_SHORTER = "later turns shorter than the turn before: read as what is new in them, sent after the conversation so far"
_LIKE = "later turns of sessions in which a turn before gave only what is new: read as new as well"
_WHOLE = "later turns that repeat the turn before: read as whole prompts"


@dataclass(frozen=True)
class _Former:
    """What is remembered of a turn: digests instead of texts, whole blocks only; whether it gave only what is new."""

    length: int
    answer: int
    blocks: int
    digest: bytes
    is_new: bool = False


class Conversations:
    """Settles ``continues`` of later turns, in the order they come; remembers the last turn of each session."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._former: dict[str, _Former] = {}

    def settled(self, request: TraceRequest) -> TraceRequest:
        """The request, with ``continues`` set where the turn before shows something else than its format says."""
        session = request.session
        if session is None:
            return request
        former = self._former.get(session)
        self._former[session] = _remembered(request)
        if former is None or request.continues is not None or request.turn == 0:
            return request
        if request.input_length is not None and request.messages is None and request.prompt is None:
            return self._settled_length(request, former)
        if continues_conversation(request) and _repeats(request, former):
            self._notes.rows(_WHOLE)
            return msgspec.structs.replace(request, continues=False)
        return request

    def _settled_length(self, request: TraceRequest, former: _Former) -> TraceRequest:
        if continues_conversation(request):
            return request
        reason = None
        if former.is_new and not request.block_ids:
            reason = _LIKE
        elif (request.input_length or 0) < former.length:
            reason = _SHORTER
        elif request.block_ids and request.block_size:
            if former.blocks:
                known = _digest(request.block_ids[: former.blocks])
                reason = None if known == former.digest else _NEW
            elif (request.input_length or 0) < former.length + former.answer:
                reason = _NEW
        if reason is None:
            return request
        self._notes.rows(reason)
        if request.session is not None:
            self._former[request.session] = replace(self._former[request.session], is_new=True)
        return msgspec.structs.replace(request, continues=True)


def _remembered(request: TraceRequest) -> _Former:
    answer = request.output_length or 0
    if request.prompt is not None:
        return _Former(len(request.prompt), answer, 0, _digest(request.prompt))
    if request.messages is not None:
        return _Former(len(request.messages), answer, 0, _digest(request.messages))
    length = request.input_length or len(request.prompt_token_ids or ())
    if request.block_ids and request.block_size:
        whole = request.block_ids[: length // request.block_size]
        return _Former(length, answer, len(whole), _digest(whole))
    return _Former(length, answer, 0, b"")


def _repeats(request: TraceRequest, former: _Former) -> bool:
    """Whether a text is longer than the previous turn's and begins with it."""
    if request.prompt is not None:
        begins = len(request.prompt) > former.length >= _TOLD_APART_CHARACTERS
        return begins and _digest(request.prompt[: former.length]) == former.digest
    if request.messages is not None:
        begins = len(request.messages) > former.length
        return begins and _digest(request.messages[: former.length]) == former.digest
    return False


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).digest()
