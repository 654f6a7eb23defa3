"""The seam between a cache and the code that works on its pages.

A cache decides which pages a step writes and reads, and hands them over as index tensors; a :class:`KernelSet` stores
keys and values there and attends over them. There is one set for each structure of cache (``tokens``, ``blocks``,
``scored``, ``heads``), written in torch, in :mod:`kvload.servers.kernels.reference`: it defines what is right, on every
device. Another set for the same structure takes its place where it may, and may lay out pages in its own way.

Once a step a cache calls ``kernels.begin(step)``, and in every layer, in this order::

    query, key, value = kernels.prepare(query, key, value)
    kernels.store(layer, step, key, value)                     where kernels.stores_first
    kernels.attend_decode(layer, group, query, key, value, extras)       for every group of decoding sequences
    kernels.attend_prefill(layer, chunk, query, key, value, extras)      for every part of a prompt
    kernels.store(layer, step, key, value)                     otherwise
    output = kernels.finish(output)

Nothing here knows of the embedded engine: the same sets can work inside another engine's process.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from kvload.servers.kernels.attention import AttentionExtras
from kvload.servers.kernels.layout import CacheGeometry


class Rows(Protocol):
    """Which rows of a step's packed batch something is about."""

    @property
    def tokens(self) -> torch.Tensor | slice:
        """Their numbers, or a slice where one sequence has them all."""


Decode = TypeVar("Decode", bound=Rows)
"""Some sequences with one new token each."""
Prefill = TypeVar("Prefill", bound=Rows)
"""Several new tokens of one sequence."""
Writes = TypeVar("Writes")
"""Where a step's keys and values go, where groups and chunks do not say it themselves."""


@dataclass
class Step(Generic[Decode, Prefill, Writes]):
    """One step as the kernels see it."""

    decodes: list[Decode]
    prefills: list[Prefill]
    writes: Writes


class KernelSet(ABC, Generic[Decode, Prefill, Writes]):
    """Stores into the pages of one structure and attends over them.

    Args:
        geometry: shape of the model's keys and values.

    Attributes:
        name: of the family it belongs to.
        stores_first: whether new tokens are stored before they are attended to, so that a generated token reads itself
            as it is stored.
        unpacks: whether pages are unpacked into scratch memory, which bounds how much is read at once, and masks are
            made of positions; a set that reads pages as they are gets all decoding sequences in one group without them.
        capturable: whether decoding steps can be captured in a graph, see :meth:`settle`.
        page_bytes: bytes of a page in one plane.
    """

    name: ClassVar[str] = "torch"
    stores_first: ClassVar[bool] = True
    unpacks: ClassVar[bool] = True
    capturable: ClassVar[bool] = False
    page_bytes: int

    def __init__(self, geometry: CacheGeometry) -> None:
        self.geometry = geometry
        self.grouped = geometry.kv_heads, geometry.query_heads // geometry.kv_heads, 1, geometry.head_dim

    @classmethod
    def obstacle(cls, geometry: CacheGeometry, method: Any) -> str | None:
        """Why this set cannot serve a method here (device, shape, option); None where it can.

        Args:
            geometry: shape of the model's keys and values, with dtype and device.
            method: how tokens are encoded and kept, as the set's constructor takes it.
        """
        del geometry, method
        return None

    def bind(self, storage: torch.Tensor) -> None:
        """Take the pool's memory, once.

        Args:
            storage: ``(planes, pages + 2, page_bytes)`` uint8. Behind the pool's pages lie one of zeros, for the
                padding of tables, and one that takes writes which go nowhere.
        """
        self.storage = storage

    def limit_scratch(self, blocks: int) -> None:
        """Hold at most this many unpacked pages at once; a set without scratch memory need not care."""
        del blocks

    def begin(self, step: Step[Decode, Prefill, Writes]) -> None:
        """Do once what all layers of a step share."""
        del step

    def settle(self, step: Step[Decode, Prefill, Writes], rows: int) -> tuple[Step[Decode, Prefill, Writes], int]:
        """Write a decoding step to memory that stays in place from step to step, where captured graphs read it.

        Args:
            step: nothing but sequences with one new token, in the batch's order.
            rows: sequences of the graph; what the step has fewer is padding, which reads and writes nothing.

        Returns:
            the step with ``rows`` sequences in that memory, to begin and attend with; and a number that changes when
            the memory does, so that what was captured before must not be replayed.
        """
        raise NotImplementedError(f"the {self.name} kernels are not captured")

    def prepare(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The step's tensors as the other functions want them (rotated, for instance)."""
        return query, key, value

    def finish(self, output: torch.Tensor) -> torch.Tensor:
        """Undo for the output what :meth:`prepare` did."""
        return output

    @abstractmethod
    def store(self, layer: int, step: Step[Decode, Prefill, Writes], key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the step's keys and values; what needs the attention's own weights is written by the attention.

        Args:
            key, value: ``(tokens, kv_heads, head_dim)`` of the whole step, keys with their rotary embedding applied.
        """

    @abstractmethod
    def attend_decode(
        self,
        layer: int,
        group: Decode,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Attention of a group's generated tokens.

        Args:
            query: ``(tokens, query_heads, head_dim)`` of the whole step; ``group.tokens`` names the group's rows.
            key, value: ``(tokens, kv_heads, head_dim)`` of the whole step.
            extras: what the layer adds to plain attention.

        Returns:
            ``(b, query_heads, head_dim)``.
        """

    @abstractmethod
    def attend_prefill(
        self,
        layer: int,
        chunk: Prefill,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extras: AttentionExtras,
    ) -> torch.Tensor:
        """Attention of several tokens of one prompt; shapes as in :meth:`attend_decode`."""
