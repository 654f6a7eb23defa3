"""What a method says about itself. The caches in ``engine/cache`` ask these questions and no others.

A method names the structure of cache it lives in (:attr:`TokenMethod.structure`): the structures differ in what a page
holds, not in the method's arithmetic, and :func:`kvload.servers.engine.cache.build_cache` chooses by that name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvload.servers.engine.kernels.layout import Field


@dataclass(frozen=True)
class PageShape:
    """What a page holds: the keys or the values of some tokens.

    Attributes:
        tokens, heads, head_dim: of a page.
        dtype: the model's own.
    """

    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class TokenMethod(ABC):
    """A method that stores every token on its own: a page holds the keys and the values of the same few tokens.

    The page's fields are declared once and used twice, for the keys and for the values.

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
        """See the class."""
        return 0

    @property
    def recent_tokens(self) -> int | None:
        """See the class."""
        return None

    @property
    def rotation_seed(self) -> int | None:
        """Seed of the random Hadamard transform that queries, keys and values are turned by; None: they are not."""
        return None

    @abstractmethod
    def fields(self, shape: PageShape) -> tuple[Field, ...]:
        """The arrays of one page for the keys (or the values), each ``(tokens, heads, ...)``."""

    @abstractmethod
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys or values ``(n, heads, head_dim)`` as one array ``(n, heads, ...)`` for each field."""

    @abstractmethod
    def decode(self, parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        """The fields of some pages, each ``(pages, tokens, heads, ...)``, as ``(pages, tokens, heads, head_dim)``.

        Args:
            dtype: of the result.
        """
