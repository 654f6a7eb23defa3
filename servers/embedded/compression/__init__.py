"""The compression methods, one file each: how tokens are written into pages, and which tokens stay."""

import importlib
from typing import TYPE_CHECKING, Any

from kvload.errors import UsageError

if TYPE_CHECKING:
    from kvload.servers.catalogue.asked import MethodSpec


def build_method(spec: "MethodSpec", seed: int = 0) -> Any:
    """The method's dataclass with its options filled in.

    Args:
        spec: as ``parse_method`` returns it.
        seed: handed to methods that declare a field of that name.

    Raises:
        UsageError: the embedded engine does not offer the method.
    """
    # Not at the top: the catalogue imports the methods of installed packages, which import this package.
    from kvload.servers.catalogue.methods import METHODS

    row = METHODS.get(spec.name)
    if row is None or not row.implementation:
        raise UsageError(f"the embedded engine has no method '{spec.name}'", hint="kvload methods lists them")
    place, separator, name = row.implementation.partition(":")
    if not separator:
        place, _, name = row.implementation.partition(".")
        place = f"{__name__}.{place}"
    method = getattr(importlib.import_module(place), name)
    options = dict(row.fixed) | {option.name: spec.options.get(option.name, option.default) for option in row.options}
    if "seed" in method.__dataclass_fields__:
        options["seed"] = seed
    return method(**options)
