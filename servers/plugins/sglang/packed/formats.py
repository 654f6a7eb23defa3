"""The page format of this process's method."""

from kvload.servers.kernels.formats import PageFormat, page_format
from kvload.servers.plugins.sglang.selection import current
from kvload.servers.plugins.vllm import contract

ROTATION_SEED = 0
"""Of the random Hadamard rotation; the embedded engine's."""


def chosen_format(head_size: int) -> PageFormat:
    """The pages of a head size.

    Raises:
        ContractError: the method has none.
    """
    try:
        return page_format(current().method, head_size)
    except ValueError as error:
        contract.refuse(current().method, [f"with head size {head_size}: {error}"])
        raise


def rotation_seed() -> int | None:
    """The seed of the rotation that this process's method asks for; None for none."""
    return ROTATION_SEED if current().method == "int4" and current().options.get("rotate", 1) else None
