"""Statistics with a section of their own in reports; a module here that defines ``STATISTIC`` is one more."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from kvload.analysis.run.section import Measured, Section, Statistic


@functools.cache
def table() -> Mapping[str, Statistic]:
    """All statistics by key."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    statistics = sorted((module.STATISTIC for module in modules), key=lambda each: each.key)
    return MappingProxyType({each.key: each for each in statistics})


def measure_all(measured: Measured) -> list[Section]:
    """The sections of a run, in the order of their keys.

    Raises:
        ValueError: a statistic gives other figures than it declares.
    """
    sections = []
    for statistic in table().values():
        values = statistic.measure(measured)
        if values is None:
            continue
        if values.keys() != statistic.figures.keys():
            raise ValueError(f"the statistic '{statistic.key}' declares {[*statistic.figures]} and gives {[*values]}")
        sections.append(Section(statistic=statistic, values=values))
    return sections
