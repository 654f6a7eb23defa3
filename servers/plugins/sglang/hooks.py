"""SGLang's own registry of hooks, and whether each hook took: the registry itself only logs one that does not."""

from collections.abc import Callable, Mapping
from typing import Any

from kvload.servers.plugins.vllm.contract import ContractError


def wrap(around: Mapping[str, Callable[..., Any]]) -> None:
    """Wrap functions of SGLang, each once per process.

    Args:
        around: dotted path of a function to what is called in its place, with the original first.

    Raises:
        ContractError: a hook did not take.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, hook in around.items():
        if target not in HookRegistry._patched:
            HookRegistry.register(target, hook, HookType.AROUND)
    HookRegistry.apply_hooks()
    missing = sorted(set(around) - HookRegistry._patched)
    if missing:
        raise ContractError(f"SGLang did not let itself be hooked at {', '.join(missing)}")
