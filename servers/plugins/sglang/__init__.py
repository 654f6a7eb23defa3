"""Methods of kvload inside an unpatched SGLang: its ``sglang.srt.plugins`` entry point.

SGLang calls :func:`register` in the process of its API and in each scheduler's, before it builds anything. Without the
variable :data:`~kvload.servers.plugins.sglang.selection.VARIABLE` the call does nothing. With it, the method that the
variable names is looked up in :data:`~kvload.servers.plugins.sglang.table.ROWS`, the installed SGLang is held against
the contract of :mod:`~kvload.servers.plugins.sglang.contract`, and the method's hooks are put in their places: an
attention backend under the name ``kvload``, and what SGLang's own registry of hooks wraps.

Rooms: ``selection`` (the variable), ``table`` (a row a method), ``contract`` (what of SGLang is relied on), ``hooks``
(its registry of hooks, and whether each took), ``limits`` (what no method goes with), ``eviction`` (methods that drop
tokens), ``packed`` (methods that store them in fewer bits).
"""

import os

__all__ = ["register"]


def register() -> None:
    """Install the method that the environment names; nothing where it names none. May be called again.

    Raises:
        SystemExit: the method or this SGLang is not known. SGLang goes on after any other error of a plugin, without
            the method; a server must not run under a name that it does not deserve.
    """
    from kvload.servers.plugins.sglang import selection
    from kvload.servers.plugins.vllm.selection import SelectionError

    try:
        chosen = selection.read(os.environ)
    except SelectionError as error:
        raise SystemExit(f"kvload: {error}") from None
    if chosen is None:
        return
    from kvload.servers.plugins.sglang import contract, table
    from kvload.servers.plugins.vllm.contract import ContractError

    try:
        row = table.row_of(chosen)
        contract.check(row)
        table.install(row)
    except ContractError as error:
        raise SystemExit(f"kvload: {error}") from None
