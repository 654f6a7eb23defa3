"""With which block a method's policy runs in a token-granular pool."""

from functools import cache

from kvload.servers.plugins.sglang.selection import current
from kvload.servers.plugins.vllm.eviction.policy import Policy, build
from kvload.servers.plugins.vllm.selection import Selection

H2O_BLOCK = 16
"""Tokens that H2O evicts together: choosing costs a pass over all scores of a request."""


def policy_of(selection: Selection) -> Policy:
    """A method's policy: its blocks are single tokens, but for H2O's.

    Raises:
        ContractError: no such method or option, or options that do not go together.
    """
    return build(selection, H2O_BLOCK if selection.method == "h2o" else 1)


def leading(policy: Policy, computed: int, prompt: int) -> int:
    """Leading slots that are gone, in tokens; the policy's ``start`` ones among them are kept all the same."""
    return int(policy.first_kept(computed, prompt)) * policy.block


def held(policy: Policy, computed: int, prompt: int) -> int:
    """Slots that a request holds once so many of its tokens are computed."""
    return computed - max(0, leading(policy, computed, prompt) - policy.start)


@cache
def chosen() -> Policy:
    """The policy that this process's environment names."""
    return policy_of(current())
