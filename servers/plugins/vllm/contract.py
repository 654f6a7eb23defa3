"""What of vLLM the plugin relies on, checked before anything is registered.

vLLM promises no stable interface here. The releases below were read, and the ones so marked were run; on any other the
plugin refuses to start rather than to corrupt a cache. What a method wraps, it names with the parameters it expects.
"""

import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvload.servers.plugins.vllm.table import Row

KNOWN: dict[tuple[int, int], str] = {(0, 26): "GPU", (0, 32): "CPU", (0, 33): "read only"}
"""Releases of vLLM whose source the plugin was written against, and where it was run."""


class ContractError(Exception):
    """This vLLM is not one the plugin knows, or is not as it knows it."""


@dataclass(frozen=True)
class Expected:
    """A function of vLLM that the plugin wraps, calls or overrides.

    Attributes:
        place: ``module:Class.function``.
        parameters: its first ones, in order.
        releases: where it is needed; all where empty.
        device: ``cpu`` or ``cuda`` where only that one's vLLM needs it.
    """

    place: str
    parameters: tuple[str, ...]
    releases: tuple[tuple[int, int], ...] = ()
    device: str | None = None


EXPECTED = (
    Expected("vllm.v1.attention.backends.registry:register_backend", ("backend", "class_path")),
    Expected(
        "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register",
        ("kvcache_spec_cls", "manager_class", "uniform_type_base_spec"),
    ),
    # The one hook that lets a backend choose its pages; before it there was none, and the layer's own is wrapped.
    Expected(
        "vllm.model_executor.layers.attention.attention:Attention.get_kv_cache_spec",
        ("self", "vllm_config"),
        releases=((0, 26),),
    ),
    Expected("vllm.v1.attention.backend:AttentionBackend.customize_spec", ("spec",), releases=((0, 32), (0, 33))),
)
"""What every method relies on; a row of the table adds its own."""


def release_of(version: str) -> tuple[int, int]:
    """``0.32.0+cpu`` as ``(0, 32)``.

    Raises:
        ContractError: it does not begin with two numbers.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise ContractError(f"vLLM's version '{version}' is not a release; kvload's plugin knows {known()}")
    return int(match[1]), int(match[2])


def known() -> str:
    """The releases in words."""
    return ", ".join(f"{major}.{minor}" for major, minor in KNOWN)


def check(row: "Row") -> tuple[int, int]:
    """Hold the installed vLLM against what the plugin and a method rely on.

    Returns:
        its release.

    Raises:
        ContractError: says what is different, and which releases are known.
    """
    import vllm
    from vllm.platforms import current_platform

    device = "cpu" if current_platform.is_cpu() else "cuda"
    release = release_of(vllm.__version__)
    if release not in KNOWN:
        raise ContractError(
            f"kvload's method {row.method} runs inside vLLM {known()}; this is {vllm.__version__}. "
            "Use one of those, or start vLLM without the method"
        )
    for expected in (*EXPECTED, *row.expects):
        if (not expected.releases or release in expected.releases) and expected.device in {None, device}:
            check_function(expected, vllm.__version__)
    return release


def check_function(expected: Expected, version: str, engine: str = "vLLM") -> None:
    """Hold one function of an engine against what is expected of it.

    Raises:
        ContractError: it is not there, or takes other parameters.
    """
    try:
        found = resolve(expected.place)
    except (ImportError, AttributeError) as error:
        raise ContractError(
            f"{engine} {version} has no {expected.place} ({error}): kvload's plugin cannot run in it"
        ) from None
    names = [name for name in inspect.signature(found).parameters if name != "cls"]
    if names[: len(expected.parameters)] != list(expected.parameters):
        raise ContractError(
            f"{engine} {version}: {expected.place} takes ({', '.join(names)}), where kvload's plugin expects "
            f"({', '.join(expected.parameters)}): it cannot run in it"
        )


def resolve(place: str) -> Any:
    """The object at ``module:Class.attribute``."""
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def refuse(method: str, problems: Sequence[str]) -> None:
    """End the start where a setting of vLLM does not go with a method.

    Raises:
        ContractError: there are problems; names them all.
    """
    if problems:
        raise ContractError(f"kvload's method {method} does not run {'; nor '.join(problems)}")
