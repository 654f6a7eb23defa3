"""D for reasoning and for the answer apart: compression may lengthen the one and not the other.

``D = (L_base - L_other) / L_base`` over pairs in which both answers hold reasoning, as in
:mod:`kvload.analysis.comparison.lengths`, with the interval of a median between order statistics.
"""

import numpy as np

from kvload.analysis import words
from kvload.analysis.records.pairs import Pairs
from kvload.analysis.records.table import Floats
from kvload.analysis.statistics import estimates


def notes(pairs: Pairs) -> list[str]:
    """A sentence on both, where there is reasoning on both sides."""
    base, other = pairs.base, pairs.other
    rows = np.flatnonzero(pairs.answered & (base.reasoning_tokens > 0) & ~np.isnan(other.reasoning_tokens))
    if not len(rows):
        return []
    thinking = _difference(base.reasoning_tokens[rows], other.reasoning_tokens[rows])
    answers = _difference(
        (base.output_tokens - base.reasoning_tokens)[rows], (other.output_tokens - other.reasoning_tokens)[rows]
    )
    return [
        f"{pairs.other_name}: median D of the reasoning {_shown(thinking)}, of the answer itself {_shown(answers)},"
        f" over {words.plural(len(rows), 'pair')} with reasoning"
    ]


def _difference(base: Floats, other: Floats) -> estimates.Estimate:
    longer = base > 0
    return estimates.quantile(np.sort((base[longer] - other[longer]) / base[longer]), 0.5)


def _shown(found: estimates.Estimate) -> str:
    if found.estimate is None:
        return "unknown"
    bounds = [] if found.low is None or found.high is None else [found.low, found.high]
    around = f" [{', '.join(words.number(bound * 100) for bound in bounds)}]" if bounds else ""
    return f"{words.number(found.estimate * 100)} %{around}"
