"""How answers ended."""

import numpy as np

from kvload.analysis.records.table import Bools, RecordTable


def cap_hit(table: RecordTable) -> Bools:
    """Answers that were cut off at ``max_tokens``: the server says ``length``, or the count reached the cap.

    Their true length is unknown (censored).
    """
    reached = table.output_tokens >= table.max_tokens
    natural = table.finish_reason.equals("stop")
    hit: Bools = table.ok & (table.finish_reason.equals("length") | (reached & ~natural))
    return hit


def cut_by_time(table: RecordTable) -> Bools:
    """Answers that had begun when the request's own limit passed or the run ended: as long as seen, or longer."""
    begun = np.nan_to_num(table.output_tokens) > 0
    cut: Bools = table.has_status("timeout", "censored") & begun
    return cut


def censored(table: RecordTable) -> Bools:
    """Answers whose true length is only known from below."""
    return cap_hit(table) | cut_by_time(table)


def has_length(table: RecordTable) -> Bools:
    """Answers whose tokens were counted, to their end or until they were cut."""
    known: Bools = (table.ok | cut_by_time(table)) & ~np.isnan(table.output_tokens)
    return known


def too_short(table: RecordTable) -> Bools:
    """Whole answers of fewer tokens than ``min_tokens`` asks for: a server that does not heed it does less work.

    Chunks alone prove nothing: they may hold several tokens.
    """
    counted = ~table.output_tokens_source.equals("chunks")
    short: Bools = table.ok & counted & (table.output_tokens < table.min_tokens)
    return short


def too_long(table: RecordTable) -> Bools:
    """Answers of more tokens than ``max_tokens`` allows, the end of the sequence apart."""
    long: Bools = table.ok & (table.max_tokens > 0) & (table.output_tokens - table.end_tokens > table.max_tokens)
    return long
