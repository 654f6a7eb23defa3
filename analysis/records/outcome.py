"""How answers ended."""

from kvload.analysis.records.table import Bools, RecordTable


def cap_hit(table: RecordTable) -> Bools:
    """Answers that were cut off at ``max_tokens``: the server says ``length``, or the count reached the cap.

    Their true length is unknown (censored).
    """
    reached = table.output_tokens >= table.max_tokens
    natural = table.finish_reason.equals("stop")
    hit: Bools = table.ok & (table.finish_reason.equals("length") | (reached & ~natural))
    return hit
