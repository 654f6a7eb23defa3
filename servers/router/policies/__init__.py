"""How a server is chosen, one policy a file.

A policy takes one :class:`~kvload.servers.router.policies.base.Question` and the servers, and says which of them
answers. A new one is a file here, with a class that has :class:`~kvload.servers.router.policies.base.Policy`'s methods,
and a row in :data:`POLICIES`.
"""

from importlib import import_module

from kvload.errors import UsageError
from kvload.servers.router.policies.base import Policy, Settings

POLICIES = {
    "fragile": ("fragile", "FragilePolicy"),
    "share": ("share", "SharePolicy"),
    "task": ("task", "TaskPolicy"),
    "random": ("random", "RandomPolicy"),
    "least-loaded": ("least_loaded", "LeastLoadedPolicy"),
    "round-robin": ("round_robin", "RoundRobinPolicy"),
}
"""Module and class by name."""


def make(name: str, settings: Settings) -> Policy:
    """A policy by its name.

    Raises:
        UsageError: there is none of that name, or it lacks a router or has too many servers.
    """
    if name not in POLICIES:
        raise UsageError(f"no such policy: '{name}'", where="--policy", hint=f"there are: {', '.join(POLICIES)}")
    module, kind = POLICIES[name]
    made: Policy = getattr(import_module(f"kvload.servers.router.policies.{module}"), kind)(settings)
    return made
