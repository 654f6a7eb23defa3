"""A statistic of a run with its own section in every report: what one file under ``analysis/run/sections`` defines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvload.analysis.records.table import RecordTable
from kvload.analysis.statistics.estimates import Estimate
from kvload.records import RunManifest

Unit = Literal["s", "share", "number"]
"""What a figure is: seconds, a share of 1, or a plain number."""

Value = Estimate | float | None
"""A figure, with its interval where it has one; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a statistic is computed from.

    Attributes:
        table: the run's records.
        manifest: everything else about the run.
        level: confidence level of intervals.
        rng: the run's own random stream, for bootstraps.
    """

    table: RecordTable
    manifest: RunManifest
    level: float
    rng: np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is known of a figure before it is measured: its name for readers, and its unit."""

    label: str
    unit: Unit = "number"


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """A statistic.

    Attributes:
        key: its name in JSON, and in gates in front of a figure's (``turns.later_ttft_p50``).
        title: heading of its section.
        figures: what it consists of, by key.
        measure: gives the values by key; None where the run has nothing it is about, and so no section.
    """

    key: str
    title: str
    figures: Mapping[str, Figure]
    measure: Callable[[Measured], Mapping[str, Value] | None]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A statistic's values in one run."""

    statistic: Statistic
    values: Mapping[str, Value]

    def estimates(self) -> dict[str, float | None]:
        """The figures without their intervals, by key."""
        return {key: value.estimate if isinstance(value, Estimate) else value for key, value in self.values.items()}
