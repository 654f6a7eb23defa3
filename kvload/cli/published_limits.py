"""Limits that others have published, by name: ``--slo mlperf:llama3.1-8b-interactive``."""

from kvload.errors import UsageError

MLPERF_SOURCE = "MLPerf Inference v6.0, limits of the submission checker (mlcommons/inference, tools/submission)"

_MLPERF_MS = {
    "llama2-70b": (2000, 200),
    "llama2-70b-interactive": (450, 40),
    "mixtral-8x7b": (2000, 200),
    "llama3.1-8b": (2000, 100),
    "llama3.1-8b-interactive": (500, 30),
    "llama3.1-405b": (6000, 175),
    "llama3.1-405b-interactive": (4500, 80),
    "deepseek-r1": (2000, 80),
    "deepseek-r1-interactive": (1500, 15),
    "gpt-oss-120b": (3000, 80),
    "gpt-oss-120b-interactive": (2000, 15),
}

PUBLISHED: dict[str, dict[str, float]] = {
    f"mlperf:{name}": {"ttft": ttft / 1000, "tpot": tpot / 1000} for name, (ttft, tpot) in _MLPERF_MS.items()
}
"""Limits in seconds by metric, for each name. MLPerf asks them of the 99th percentile of a run: ``--target 0.99``."""


def published(name: str) -> dict[str, float]:
    """Limits in seconds by metric.

    Raises:
        UsageError: there are none of that name.
    """
    import difflib

    if name in PUBLISHED:
        return dict(PUBLISHED[name])
    close = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"there are no limits '{name}'", where="--slo", hint=f"{hint}kvload slo lists them")
