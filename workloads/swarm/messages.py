"""What the master and its workers say to each other, over Locust's own connection, and how they prove who they are.

::

    master                                   worker
      Hello    version, nonce          ->
                                       <-    Join      version, proof of the token, a nonce of its own
      Assign   settings, pass, proof   ->              only to a worker that has proven itself
                                       <-    WantsShare          where the run folder is out of its reach
      Share    bytes                   ->
                                       <-    Ready
      Go       the run's zero          ->
                                       <-    Live, Records ...
      Stop                             ->
                                       <-    Finished

Whoever can reach the master's port can speak to it; work, prompts among it, is given only to those who know the run's
token, and only they are believed. In the other direction a worker, which has keys of its own to send along, works only
for a master that knows the token, too. A token never crosses the network: each side sends what the other's nonce and
the token make (HMAC-SHA-256, RFC 2104).
"""

import hashlib
import hmac
import secrets
from typing import Any, TypeVar

import msgspec

from kvload.workloads.run.plan import PlanSettings


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Anything that is sent."""

    @classmethod
    def kind(cls) -> str:
        """Its name on the wire."""
        return f"kvload_{cls.__name__.lower()}"


class Hello(Message, frozen=True, kw_only=True):
    """The master asks who is there."""

    version: str
    nonce: str


class Join(Message, frozen=True, kw_only=True):
    """A worker is there; it says where it is and whether it was started by the run itself."""

    version: str
    nonce: str
    proof: str
    client: str
    machine: str
    pid: int
    host: str


class Refuse(Message, frozen=True, kw_only=True):
    """The master has no work for this worker, and why."""

    reason: str


class Assign(Message, frozen=True, kw_only=True):
    """A worker's part; ``pass_word`` goes with everything it says from now on."""

    shard: int
    machine: str
    settings: PlanSettings
    pass_word: str
    proof: str


class FromWorker(Message, frozen=True, kw_only=True):
    """Anything a worker says once it has its part."""

    pass_word: str


class WantsShare(FromWorker, frozen=True, kw_only=True):
    """A worker that cannot reach the run folder asks for its share's bytes."""


class Share(Message, frozen=True, kw_only=True):
    """A part of a share's bytes."""

    data: bytes
    last: bool


class Ready(FromWorker, frozen=True, kw_only=True):
    """A worker has its share and waits for the start."""


class Go(Message, frozen=True, kw_only=True):
    """The run's zero, on the master's clocks."""

    machine: str
    zero_ns: int
    zero_wall_ns: int


class Stop(Message, frozen=True, kw_only=True):
    """Send nothing more; with ``cut`` also end what is in flight."""

    cause: str
    cut: bool


class Live(FromWorker, frozen=True, kw_only=True):
    """A worker's figures, an encoded :class:`~kvload.workloads.run.live.LiveReport`."""

    report: bytes


class Records(FromWorker, frozen=True, kw_only=True):
    """Records of a worker that cannot reach the run folder, with their chunk rows."""

    records: list[bytes]
    chunks: list[bytes]


class Finished(FromWorker, frozen=True, kw_only=True):
    """A worker is done with its share, or has failed.

    Attributes:
        error: what failed.
        fault: whose doing that was, see :class:`kvload.records.RunManifest`.
        unrecorded: index of every request that was sent and whose record could not be written.
    """

    error: str | None = None
    fault: str | None = None
    unrecorded: list[int] = []


class Ping(FromWorker, frozen=True, kw_only=True):
    """A worker on another machine asks for the master's time."""

    here_ns: int


class Pong(Message, frozen=True, kw_only=True):
    """The answer to it."""

    here_ns: int
    master_ns: int


def encode(message: Message) -> bytes:
    """The message as it is sent."""
    return msgspec.msgpack.encode(message)


M = TypeVar("M", bound=Message)


def decode(data: Any, kind: type[M]) -> M:
    """A message that came.

    Raises:
        ValueError: it is none of that kind.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a message of ours: {error}") from None


def new_nonce() -> str:
    """Random characters that nobody can guess."""
    return secrets.token_hex(16)


def proof(token: str, purpose: str, *parts: str) -> str:
    """What only one who knows the token can make of these parts."""
    return hmac.new(token.encode(), "\n".join((purpose, *parts)).encode(), hashlib.sha256).hexdigest()


def proves(found: str, token: str, purpose: str, *parts: str) -> bool:
    """Whether it is that."""
    return hmac.compare_digest(found.encode(), proof(token, purpose, *parts).encode())
