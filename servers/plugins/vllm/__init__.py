"""Methods of kvload inside an unpatched vLLM: its ``vllm.general_plugins`` entry point.

vLLM calls :func:`register` in each of its processes (API server, engine core, workers) before it builds anything.
Without the variable :data:`~kvload.servers.plugins.vllm.selection.VARIABLE` the call does nothing. With it, the method
that the variable names is looked up in :data:`~kvload.servers.plugins.vllm.table.ROWS`, the installed vLLM is held
against the contract of :mod:`~kvload.servers.plugins.vllm.contract`, and the method's attention backend is registered:
under ``CUSTOM`` on a GPU (which the command line then selects), under ``CPU_ATTN`` on a CPU.

Rooms: ``selection`` (the variable), ``table`` (a row a method), ``contract`` (what of vLLM is relied on), ``layout``
(what differs between vLLM's releases in how a KV cache is specified and laid out), ``eviction`` (methods that drop
tokens). A new method is a row, and a backend where no existing one serves it.
"""

import os

__all__ = ["register"]


def register() -> None:
    """Install the method that the environment names; nothing where it names none. May be called again.

    Raises:
        ContractError: the method or this vLLM is not known. It ends the process, as vLLM ends on what a plugin raises.
    """
    from kvload.servers.plugins.vllm import selection

    chosen = selection.read(os.environ)
    if chosen is None:
        return
    from kvload.servers.plugins.vllm import contract, table

    row = table.row_of(chosen)
    release = contract.check(row)
    table.install(row, release)
