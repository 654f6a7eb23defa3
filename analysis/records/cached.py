"""How much of each prompt a server took from its prefix cache, by its own count."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kvload.analysis.records.table import Floats, RecordTable
from kvload.records import ServerInfo

REPORTING_FLAG = "--enable-cache-report"
"""With this SGLang counts what its cache held of each prompt, and leaves the count out where that was nothing."""


def cached_tokens(table: RecordTable, servers: Sequence[ServerInfo]) -> Floats:
    """Tokens of each prompt that came from the prefix cache, ``(n,)``; NaN where that is not known.

    SGLang, and vLLM before 0.26, leave a count of 0 out. Of a server that counts for any request of the run, or was
    started with :data:`REPORTING_FLAG`, a usage without the count therefore says 0; and a server whose prefix cache is
    off takes nothing from it.

    Args:
        servers: those of the run's manifest.
    """
    found = table.cached_tokens.copy()
    silent = np.isnan(found) & ~np.isnan(table.prompt_tokens) & table.cached_doubt.equals(None)
    for place, info in enumerate(servers):
        mine = table.server == place
        counts = info.prefix_cache == "off" or REPORTING_FLAG in (info.command or ())
        if counts or not np.isnan(found[mine]).all():
            found[silent & mine] = 0.0
    return found


def with_cached(table: RecordTable, servers: Sequence[ServerInfo]) -> RecordTable:
    """The table with :func:`cached_tokens` in the place of what was recorded."""
    return replace(table, cached_tokens=cached_tokens(table, servers))


def cached_share(table: RecordTable, servers: Sequence[ServerInfo]) -> float | None:
    """Share of the tokens of answered prompts that came from the prefix cache; None where no answer tells."""
    cached = cached_tokens(table, servers)
    known = table.ok & ~np.isnan(cached) & ~np.isnan(table.prompt_tokens)
    prompts = float(table.prompt_tokens[known].sum())
    return float(cached[known].sum()) / prompts if prompts else None
