"""The limits of an engine's scheduler: from the command it was started with, or what the engine takes by itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scheduling:
    """How an engine's flags name its scheduler's limits, and what they are where no flag is given.

    Attributes:
        sequences_flag, tokens_flag, page_flag: flags for requests running at once, tokens of a step, tokens of a page.
        sequences, tokens, page_tokens: the engine's own choice.
        cpu_page_tokens: the same of its build for processors, where that is another one.
        spare_pages: pages that it counts as the pool's and never fills.
    """

    sequences_flag: str
    tokens_flag: str
    page_flag: str
    sequences: int
    tokens: int
    page_tokens: int
    cpu_page_tokens: int | None = None
    spare_pages: int = 0


@dataclass(frozen=True)
class Limits:
    """A scheduler's limits.

    Attributes:
        max_sequences: requests running at once.
        chunk_tokens: tokens of one step.
        page_tokens: tokens of a page of the cache.
    """

    max_sequences: int
    chunk_tokens: int
    page_tokens: int


def limits(scheduling: Scheduling, command: Sequence[str], device: str | None = None) -> Limits:
    """The limits of a server.

    Args:
        scheduling: of its engine.
        command: its command line; empty where it is not known.
        device: what it runs on; ``cpu`` for a processor.
    """

    def value(flag: str, default: int) -> int:
        for place, argument in enumerate(command):
            name, separator, given = argument.partition("=")
            if name == flag:
                text = given if separator else (command[place + 1] if place + 1 < len(command) else "")
                return int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else default
        return default

    sequences = value(scheduling.sequences_flag, scheduling.sequences)
    tokens = value(scheduling.tokens_flag, scheduling.tokens)
    page_tokens = scheduling.cpu_page_tokens if device == "cpu" else None
    page_tokens = value(scheduling.page_flag, page_tokens or scheduling.page_tokens)
    return Limits(sequences, max(tokens, sequences + 1), page_tokens)
