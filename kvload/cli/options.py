"""What several commands take on their command lines, read and declared once."""


def read_limits(slo: str, goodput: str = "") -> dict[str, float]:
    """Limits in seconds by name, from ``--slo`` or, in vLLM's spelling, from ``--goodput``.

    Raises:
        UsageError: one does not parse, or both are given.
    """
    from kvload.errors import UsageError
    from kvload.units import parse_limits

    if slo.strip() and goodput.strip():
        raise UsageError("give one of them: they say the same", where="--slo, --goodput")
    return parse_limits(slo, where="--slo") or parse_limits(goodput, where="--goodput", bare_unit="ms")
