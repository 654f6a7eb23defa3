"""The key a server wants: from where it is taken, and what it may look like."""

from collections.abc import Mapping

from kvload.errors import UsageError

API_KEY_VARIABLES = ("KVLOAD_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first that is set counts; ``--api-key`` comes before both."""


def api_key(environ: Mapping[str, str], given: str | None = None) -> str | None:
    """The key for a server: the one given, or that of the environment; None where there is none.

    Args:
        environ: environment variables.
        given: value of ``--api-key``.

    Raises:
        UsageError: it holds a character that no header may carry; the key itself is not part of the message.
    """
    if given:
        return check_key(given, "--api-key")
    for name in API_KEY_VARIABLES:
        if key := environ.get(name):
            return check_key(key, name)
    return None


def key_named(variable: str, environ: Mapping[str, str], where: str) -> str:
    """The key in an environment variable that the user named (``--arm-key a=MY_KEY``).

    Raises:
        UsageError: the variable is not set, or holds no key.
    """
    key = environ.get(variable)
    if not key:
        raise UsageError(f"the environment variable {variable} is not set", where=where)
    return check_key(key, variable)


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key (RFC 6750)."""
    return {"Authorization": f"Bearer {key}"}


def overridden(headers: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Headers with others in place of those of the same name, whatever its case (RFC 9110, 5.1)."""
    names = {name.lower() for name in others}
    return {name: value for name, value in headers.items() if name.lower() not in names} | dict(others)


def check_key(key: str, where: str) -> str:
    """The key, if a header can carry it (RFC 9110, 5.5: visible characters, no line ends).

    Raises:
        UsageError: it cannot.
    """
    if "\r" in key or "\n" in key:
        raise UsageError("the key has a line end in it", where=where, hint="was it read from a file with its line end?")
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise UsageError("the key has characters that no header may carry", where=where)
    return key
