"""What a method of eviction says about itself; the rest of the room asks these questions and no others."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kvload.servers.plugins.vllm.contract import ContractError
from kvload.servers.plugins.vllm.selection import Selection, current

PAGE_ALIGNMENT = 256
"""Bytes that a page is a multiple of where scores lie behind it: attention kernels want aligned strides."""

Counts = npt.NDArray[np.int64]
N = TypeVar("N", int, Counts)

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "streamingllm": "kvload.servers.plugins.vllm.eviction.streamingllm:StreamingLLM",
        "snapkv": "kvload.servers.plugins.vllm.eviction.snapkv:SnapKV",
        "h2o": "kvload.servers.plugins.vllm.eviction.h2o:H2O",
        "h2o-prompt": "kvload.servers.plugins.vllm.eviction.h2o_prompt:H2OPrompt",
    }
)
"""Method to its policy's class."""


@dataclass(frozen=True)
class Policy(ABC):
    """Which tokens of a request stay. All counts are tokens unless they say blocks.

    Attributes:
        block: tokens of a block.
    """

    block: int

    @abstractmethod
    def first_kept(self, computed: N, prompt: N) -> N:
        """Leading blocks that are gone once ``computed`` tokens of a request are; never fewer for more tokens.

        Args:
            computed: tokens whose keys and values exist, one number or an array.
            prompt: tokens of the request's prompt, likewise.
        """

    @property
    def start(self) -> int:
        """First tokens that stay and stay visible although their block is counted as gone."""
        return 0

    @property
    def sight(self) -> int | None:
        """Newest tokens a query sees, itself included, besides the first ``start``; None: all that are kept."""
        return None

    @property
    def judges(self) -> int | None:
        """How many last queries of the prompt give scores: 0 where nothing is scored, None for all, decoding too."""
        return 0

    @property
    def newest(self) -> int:
        """Newest tokens that stay whatever their score."""
        return 0

    @property
    def most_kept(self) -> int:
        """Most slots of a request that hold tokens right after a compaction; 0 where nothing is scored."""
        return 0

    @property
    def smoothing(self) -> int:
        """Width of the mean over neighbouring positions that scores are compared by; 1 for none."""
        return 1

    @property
    def scores(self) -> bool:
        """Whether tokens are chosen by score."""
        return self.judges != 0

    @property
    def start_blocks(self) -> int:
        """Blocks of the first ``start`` tokens."""
        return -(-self.start // self.block)

    def problem(self) -> str | None:
        """What is wrong with the options, in words."""
        return None


def gone(leading: N) -> N:
    """``max(0, leading)`` for one number and for arrays."""
    return (leading > 0) * leading


def build(selection: Selection, block: int) -> Policy:
    """The policy of a method with its options, defaults for those not given.

    Raises:
        ContractError: no such method or option, or options that do not go together.
    """
    place = POLICIES.get(selection.method)
    if place is None:
        raise ContractError(f"'{selection.method}' is no method of eviction; there are {', '.join(POLICIES)}")
    module, _, name = place.partition(":")
    made: type[Policy] = getattr(importlib.import_module(module), name)
    known = {field.name for field in fields(made)} - {"block"}
    unknown = set(selection.options) - known
    if unknown:
        raise ContractError(
            f"{selection.method} has no option '{min(unknown)}' in vLLM; it has {', '.join(sorted(known))}"
        )
    options = {option: int(value) for option, value in selection.options.items()}
    policy = made(block, **options)
    if problem := policy.problem():
        raise ContractError(f"{selection}: {problem}")
    return policy


@cache
def chosen(block: int) -> Policy:
    """The policy that this process's environment names, for a block size."""
    return build(current(), block)
