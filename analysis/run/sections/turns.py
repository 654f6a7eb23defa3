"""Conversations: how much sooner a later turn's first token comes than a first turn's.

A server that keeps the cache of the turns before has only the new words to read. Quantiles are over answered requests,
with the distribution-free interval between order statistics.
"""

from collections.abc import Mapping

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.table import count_true
from kvload.analysis.run.section import Figure, Measured, Statistic, Value
from kvload.analysis.statistics import estimates


def _measure(run: Measured) -> Mapping[str, Value] | None:
    table = run.table
    later = np.nan_to_num(table.turn) > 0
    if not (later & table.sent).any():
        return None
    ttft_s = latency.ttft_s(table)

    def median(rows: np.ndarray) -> estimates.Estimate:
        values = ttft_s[rows & table.ok]
        return estimates.quantile(np.sort(values[~np.isnan(values)]), 0.5, level=run.level)

    return {
        "later": estimates.wilson(count_true(later & table.sent), count_true(table.sent), level=run.level),
        "first_ttft_p50": median(~later),
        "later_ttft_p50": median(later),
    }


STATISTIC = Statistic(
    key="turns",
    title="Turns of conversations",
    figures={
        "later": Figure(label="later turns", unit="share"),
        "first_ttft_p50": Figure(label="TTFT p50, first turns", unit="s"),
        "later_ttft_p50": Figure(label="TTFT p50, later turns", unit="s"),
    },
    measure=_measure,
)
