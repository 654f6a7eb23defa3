"""The mock's prefix cache: it holds every block that ever came, and nothing is computed from it."""

from collections.abc import Sequence
from typing import Any


class PrefixBlocks:
    """Which leading blocks of prompts came before.

    Args:
        block_tokens: tokens of a block.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._seen: set[int] = set()

    def cached(self, prompt: Sequence[Any]) -> int:
        """Tokens in the prompt's whole leading blocks that came before, never all of it; its blocks are kept.

        Args:
            prompt: its tokens: ids, or words.
        """
        size, hits, missed = self._block_tokens, 0, False
        chain = 0
        for start in range(0, len(prompt) - size + 1, size):
            chain = hash((chain, *prompt[start : start + size]))
            missed = missed or chain not in self._seen or start + size == len(prompt)
            hits += 0 if missed else size
            self._seen.add(chain)
        return hits
