"""Reasoning before the answer: how long a user waits for the first of it, and for the first of the answer itself.

TTFT is the time to the first of anything. TTFO is the time to the first of the answer (``t_answer - t_send``), behind
the reasoning. Quantiles are over answered requests with reasoning; tokens are the server's own where it tells them
apart, else those of the chunks.
"""

from collections.abc import Mapping

import numpy as np

from kvload.analysis.records import latency
from kvload.analysis.records.table import Floats, count_true
from kvload.analysis.run.section import Figure, Measured, Statistic, Value
from kvload.analysis.statistics import estimates


def _measure(run: Measured) -> Mapping[str, Value] | None:
    table = run.table
    thought = table.ok & (np.nan_to_num(table.reasoning_tokens) > 0)
    if not thought.any():
        return None

    def median(values: Floats) -> estimates.Estimate:
        found = values[thought]
        return estimates.quantile(np.sort(found[~np.isnan(found)]), 0.5, level=run.level)

    return {
        "share": estimates.wilson(count_true(thought), count_true(table.ok), level=run.level),
        "ttft_p50": median(latency.ttft_s(table)),
        "ttfo_p50": median(latency.ttfo_s(table)),
        "thinking_tokens_p50": median(table.reasoning_tokens),
        "answer_tokens_p50": median(table.output_tokens - table.reasoning_tokens),
    }


STATISTIC = Statistic(
    key="reasoning",
    title="Reasoning before the answer",
    figures={
        "share": Figure(label="answers with reasoning", unit="share"),
        "ttft_p50": Figure(label="TTFT p50, the first of anything", unit="s"),
        "ttfo_p50": Figure(label="TTFO p50, the first of the answer", unit="s"),
        "thinking_tokens_p50": Figure(label="tokens of reasoning p50"),
        "answer_tokens_p50": Figure(label="tokens of the answer p50"),
    },
    measure=_measure,
)
