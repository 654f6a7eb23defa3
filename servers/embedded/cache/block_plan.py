"""What a block cache prepares once a step: which pages are read, and what is written and packed where."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvload.servers.embedded.cache.api import StepEntry
from kvload.servers.kernels.attention import Sight

Masks = dict[tuple[Sight, int], torch.Tensor]


@dataclass
class Part:
    """Some positions of a group's sequences: which pages hold their keys and values.

    Attributes:
        keys, values: page ids, ``(b, pages)`` each.
        position: ``(b, 1, 1, 1, slots)`` logical positions, -1 where a slot does not count here.
        step: pages read at once.
        masks: masks of this step, by what the layer lets a query see and the first page.
    """

    keys: torch.Tensor
    values: torch.Tensor
    position: torch.Tensor
    step: int
    masks: Masks = field(default_factory=dict)


@dataclass
class Seam(Part):
    """Positions whose keys are packed while their values are still in the window.

    Attributes:
        value_slots: slot inside its page of each value; ``values`` is then ``(b, slots)``.
    """

    value_slots: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Group:
    """Some sequences' queries of one step.

    Attributes:
        tokens: rows of the packed batch, ``(b,)``, or a slice where one sequence has them all.
        query_position: ``(b, 1, 1, t, 1)``.
        packed: positions of which keys and values are packed.
        seam: positions between; None where keys and values leave the window together.
        window: positions of which both are in full precision.
        own: masks of the step's own tokens.
    """

    tokens: torch.Tensor | slice
    query_position: torch.Tensor
    packed: Part | None
    seam: Seam | None
    window: Part | None
    own: Masks = field(default_factory=dict)

    @property
    def read_at_once(self) -> bool:
        """Whether all pages fit into scratch memory together."""
        return self.packed is None or self.packed.step >= self.packed.keys.shape[1]


Spots = tuple[torch.Tensor, torch.Tensor]
"""Pages and slots inside them, of as many tokens."""


@dataclass
class Writes:
    """What single new tokens of many sequences change.

    Attributes:
        tokens: rows of the packed batch.
        keys, values: where each goes in the window.
        leaving: which of ``tokens`` push a value out of the window, from the very slot they take.
        left: where those values are packed.
        full: ``(m, window_tokens)`` windows that are complete with this step: keys, and values if they leave too.
        packed_keys, packed_values: pages they are packed into.
    """

    tokens: torch.Tensor
    keys: Spots
    values: Spots
    leaving: torch.Tensor
    left: Spots
    full_keys: Spots
    full_values: Spots
    packed_keys: torch.Tensor
    packed_values: torch.Tensor


@dataclass
class SideWrites:
    """What several new tokens of one sequence change among its keys, or among its values.

    Attributes:
        held: window spots of older tokens that are packed now, together with the first of the new ones.
        packed: how many tokens are packed.
        pages: pages they are packed into, or spots where tokens are packed one by one.
        kept: which of the new tokens go into the window.
        spots: where.
    """

    held: Spots
    packed: int
    pages: Spots
    kept: slice
    spots: Spots


@dataclass
class ChunkWrites:
    """What several new tokens of one sequence change."""

    tokens: slice
    prompt: bool
    keys: SideWrites
    values: SideWrites


@dataclass
class BlockPlan:
    """One step."""

    entries: Sequence[StepEntry]
    groups: list[Group]
    singles: Writes | None
    chunks: list[ChunkWrites]
