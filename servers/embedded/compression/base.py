"""What a method says about itself. The caches in ``engine/cache`` ask these questions and no others.

A method names the structure of cache it lives in (:attr:`TokenMethod.structure`): the structures differ in what a page
holds, not in the method's arithmetic, and :func:`kvload.servers.embedded.cache.build_cache` chooses by that name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvload.servers.kernels.layout import Field, PageShape


@dataclass(frozen=True)
class TokenMethod(ABC):
    """A method that stores every token on its own: a page holds the keys and the values of the same few tokens.

    A method says how keys are stored; values are stored likewise where it says nothing else of them.

    Attributes:
        structure: the cache it lives in.
        page_tokens: tokens of a page.
        sink_tokens: first tokens that stay visible and stored in spite of ``recent_tokens``.
        recent_tokens: newest tokens a query sees, itself included; older ones' pages are freed. None: all.
    """

    structure: ClassVar[str] = "tokens"
    page_tokens: ClassVar[int] = 16

    @property
    def sink_tokens(self) -> int:
        return 0

    @property
    def recent_tokens(self) -> int | None:
        return None

    @property
    def packed_format(self) -> str | None:
        """The page format of :mod:`kvload.servers.kernels.formats` that holds the same numbers; None for none."""
        return None

    @property
    def rotation_seed(self) -> int | None:
        """Seed of the random Hadamard transform that queries, keys and values are turned by; None: they are not."""
        return None

    @abstractmethod
    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of one page for the keys, each ``(tokens, heads, ...)``."""

    @abstractmethod
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys ``(n, heads, head_dim)`` as one array ``(n, heads, ...)`` for each field."""

    @abstractmethod
    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The fields of some pages, each ``(pages, tokens, heads, ...)``, as ``(pages, tokens, heads, head_dim)``.

        Args:
            dtype: of the result.
        """

    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """As :meth:`fields`, for the values."""
        return self.fields(shape)

    def encode_value(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As :meth:`encode`, for the values."""
        return self.encode(x)

    def decode_value(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """As :meth:`decode`, for the values."""
        return self.decode(parts, dtype)


@dataclass(frozen=True)
class BlockMethod(ABC):
    """A method that packs tokens when they leave a window of full precision, keys and values into pages of their own.

    Keys leave the window together, whenever their number reaches a multiple of ``window_tokens``; values either with
    them, or one by one as the window slides on. All pages have equal bytes, whatever they hold.

    Attributes:
        structure: the cache it lives in.
    """

    structure: ClassVar[str] = "blocks"

    @property
    @abstractmethod
    def page_tokens(self) -> int:
        """Tokens of a packed page; divides ``window_tokens``."""

    @property
    @abstractmethod
    def window_tokens(self) -> int:
        """Most tokens in full precision."""

    @property
    @abstractmethod
    def sliding_values(self) -> bool:
        """Whether the newest ``window_tokens`` values are always in full precision."""

    @abstractmethod
    def key_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of a page of packed keys."""

    @abstractmethod
    def value_fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of a page of packed values; ``(tokens, ...)`` each where values slide."""

    @abstractmethod
    def encode_keys(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """Keys ``(pages, page_tokens, heads, head_dim)`` as the fields of as many pages.

        Args:
            prompt: whether they belong to the prompt or were generated.
        """

    @abstractmethod
    def encode_values(self, x: torch.Tensor, *, prompt: bool) -> tuple[torch.Tensor, ...]:
        """As :meth:`encode_keys`; where values slide, ``(tokens, heads, head_dim)`` as ``(tokens, ...)`` each."""

    @abstractmethod
    def decode_keys(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The fields of pages as ``(pages, page_tokens, heads, head_dim)`` float32."""

    @abstractmethod
    def decode_values(self, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """As :meth:`decode_keys`."""


@dataclass(frozen=True)
class ScoredMethod(ABC):
    """A method that keeps, in every layer and head, the tokens that drew the most attention; others are dropped.

    Keys and values stay in the model's dtype, each token with its position and its score: the attention weights it
    received, summed over the queries that count and over the query heads that share it.

    Attributes:
        structure: the cache it lives in.
        page_tokens: tokens of a page.
    """

    structure: ClassVar[str] = "scored"
    page_tokens: ClassVar[int] = 16

    @property
    @abstractmethod
    def kept_tokens(self) -> int:
        """Tokens that stay at the end of the prompt, the newest included."""

    @property
    @abstractmethod
    def newest_tokens(self) -> int:
        """How many of them are the newest, whatever their score."""

    @property
    @abstractmethod
    def judging_queries(self) -> int | None:
        """How many of the prompt's last queries give scores; None: all of them, and the generated ones as well."""

    @property
    @abstractmethod
    def evicts_while_decoding(self) -> bool:
        """Whether generated tokens push others out once ``kept_tokens`` are reached."""

    @property
    def evicts_at_once(self) -> int:
        """How many tokens go together, whenever the tokens beyond ``kept_tokens`` are a multiple of it."""
        return 1

    @abstractmethod
    def smoothed(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores ``(..., n)`` of consecutive positions as they are compared at the end of the prompt."""
