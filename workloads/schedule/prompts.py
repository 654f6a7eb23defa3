"""Prompts for traces that only have lengths: token ids that depend on nothing but a seed and the block's name.

Equal block ids give equal blocks, so that a prefix cache hits as it did in the recorded system; requests without block
ids share nothing. Token ids are sent as such, so the length is exact.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvload.errors import UsageError
from kvload.workloads.traces.trace import TraceRequest


@dataclass(frozen=True)
class PromptSpec:
    """The seed of made-up prompts, and their token ids: ``token_low`` up to, not including, ``token_high``.

    The default range lies inside the vocabulary of common models and leaves out their special tokens, which stand at
    the lowest and highest ids.
    """

    seed: int = 0
    token_low: int = 1000
    token_high: int = 30_000

    def __post_init__(self) -> None:
        if not 0 <= self.token_low < self.token_high <= 1 << 31:
            raise UsageError(f"no token ids from {self.token_low} to {self.token_high}", hint="check --token-range")

    @classmethod
    def for_vocabulary(cls, size: int, seed: int = 0) -> "PromptSpec":
        """A range for a model of ``size`` tokens: an eighth at both ends, where special tokens live, is left out."""
        edge = size // 8
        return cls(seed=seed, token_low=edge, token_high=max(size - edge, edge + 1))


def token_ids(request: TraceRequest, spec: PromptSpec) -> list[int]:
    """The prompt of a request that has no text: its own token ids, or ``input_length`` made-up ones (at least 1).

    Block ``b`` is the stream of ids named by the seed and ``b``, cut to ``block_size``; where the blocks do not reach
    ``input_length``, or there are none, the rest is a stream named by the request's id (by its session, for whole
    prompts of one). A stream is Philox4x64 (Salmon et al. 2011) keyed by the SHA-256 of seed and name and counted by
    the position.

    Raises:
        ValueError: the request has neither token ids nor a length.
    """
    if request.prompt_token_ids is not None:
        return request.prompt_token_ids
    if request.input_length is None:
        raise ValueError(f"request {request.id} has no length")
    length = max(request.input_length, 1)
    parts: list[npt.NDArray[np.int64]] = []
    made = 0
    if request.block_ids and request.block_size:
        for block in request.block_ids:
            if made >= length:
                break
            parts.append(_stream(f"block/{block}", min(request.block_size, length - made), spec))
            made += len(parts[-1])
    if made < length:
        parts.append(_stream(_own_name(request), length - made, spec))
    ids: list[int] = np.concatenate(parts).tolist()
    return ids


def _own_name(request: TraceRequest) -> str:
    """Whole prompts of one session share their beginning, as those of a conversation do."""
    if request.session is not None and request.arrival is not None and not request.block_ids:
        return f"session/{request.session}"
    return f"request/{request.id}"


def made_up_ids(name: str, length: int, spec: PromptSpec) -> list[int]:
    """``length`` token ids of the stream that the seed and ``name`` stand for."""
    ids: list[int] = _stream(name, length, spec).tolist()
    return ids


def _stream(name: str, length: int, spec: PromptSpec) -> npt.NDArray[np.int64]:
    key = hashlib.sha256(f"kvload/{spec.seed}/{name}".encode()).digest()[:16]
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(length)
    # the high 32 bits, scaled into the range by multiply and shift
    span = np.uint64(spec.token_high - spec.token_low)
    scaled = ((raw >> np.uint64(32)) * span) >> np.uint64(32)
    return np.asarray(scaled, dtype=np.int64) + spec.token_low
