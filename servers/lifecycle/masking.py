"""Secrets in command lines, environments and texts, masked before anything is stored or shown.

A secret is told by the name it has (``--api-key``, ``HF_TOKEN``, ``X-Auth-Header``), by the place it stands in (the
user part of an address) or by what it looks like (the prefixes that issuers give their keys, so that scanners find
them).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

MASK = "***"

SECRET_NAME = re.compile(
    r"(?i)(^|[-_.])((api|access|auth|private|secret|signing|encryption)[-_]?key|key|token|tokens|secret|password|passwd|pwd"
    r"|passphrase|credential|authorization|auth|bearer|header|cookie|sas|signature)s?$"
    r"|(apikey|authtoken|accesstoken)s?$"
)
_COUNT = re.compile(r"\d{1,12}")
"""``--max-num-batched-tokens 8192`` names no secret, whatever its name ends with."""

_NAMED_IN_TEXT = re.compile(
    r"(?i)([\"']?\b(?:[\w-]*[-_])?(?:api[-_]?key|access[-_]?key|auth|authorization|auth[-_]?token|token|secret"
    r"|password|passwd|cookie|credential)s?[\"']?\s*[=:]\s*[\[(]?[\"']?)(?!\*\*\*)(?!(?:bearer|basic)\b)([^\s,;&\"'}]{4,})"
)
"""``name=value`` and ``"name": value`` inside a text, a query or a JSON value."""

_TEXT_RULES = (
    # user:password@ of any address
    (re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9+/._~=-]{6,}"), rf"\1\2{MASK}"),
    # keys whose issuer gives them a prefix
    (
        re.compile(
            r"\b(?:sk-[A-Za-z0-9_-]{8,}|hf_(?=[A-Za-z]*\d)[A-Za-z0-9]{10,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
            r"|xox[abeprs]-[\w-]{8,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{20,}|nvapi-[\w-]{8,}|eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?)"
        ),
        MASK,
    ),
)

KEPT_VARIABLE = re.compile(
    r"^(VLLM|SGLANG|SGL|KVLOAD|CUDA|NCCL|NVIDIA|HF|TRANSFORMERS|TORCH|PYTORCH|TRITON|OMP|MKL|TOKENIZERS|FLASHINFER)_"
    r"|^(PYTHONPATH|LD_LIBRARY_PATH|LD_PRELOAD)$"
)
"""Variables that can change how an engine runs; the rest of the environment is nobody's business."""

SHORTEST_KNOWN = 6
"""Characters from which on a known secret is looked for in texts: shorter ones would blot out ordinary words."""


def is_secret(name: str, value: str) -> bool:
    """Whether a flag or variable of that name holds a secret."""
    return SECRET_NAME.search(name.lstrip("-")) is not None and not (
        name.lower().endswith("tokens") and _COUNT.fullmatch(value)
    )


def mask_text(text: str, known: Iterable[str] = ()) -> str:
    """A text with everything masked that its place or its looks mark as a secret.

    Args:
        known: secrets to mask wherever they stand, as from :func:`known_secrets`.
    """
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    for expression, replacement in _TEXT_RULES:
        text = expression.sub(replacement, text)
    return _NAMED_IN_TEXT.sub(lambda found: found[0] if _COUNT.fullmatch(found[2]) else found[1] + MASK, text)


def mask_command(command: Sequence[str]) -> list[str]:
    """The command line with the values of flags such as ``--api-key``, and whatever looks like a secret, masked."""
    masked: list[str] = []
    hide_next = counted = False
    for argument in command:
        flag, separator, value = argument.partition("=")
        named = flag.startswith("-") and SECRET_NAME.search(flag.lstrip("-")) is not None
        plural = flag.lower().endswith("tokens")
        if hide_next and not argument.startswith("--"):
            masked.append(mask_text(argument) if counted and _COUNT.fullmatch(argument) else MASK)
        elif named and separator and is_secret(flag, value):
            masked.append(f"{flag}={MASK}")
        else:
            masked.append(mask_text(argument))
        # An API key flag may take several values.
        if named and not separator:
            hide_next, counted = True, plural
        else:
            hide_next = hide_next and not argument.startswith("-")
    return masked


def mask_env(env: Mapping[str, str], *, without: Sequence[str] = ()) -> dict[str, str]:
    """The variables that matter to an engine, secrets masked.

    Args:
        env: the environment it runs in.
        without: names to leave out.
    """
    return {
        name: MASK if is_secret(name, value) else mask_text(value)
        for name, value in sorted(env.items())
        if KEPT_VARIABLE.search(name) and name != "KVLOAD_SERVER_TOKEN" and name not in without
    }


def known_secrets(env: Mapping[str, str], command: Sequence[str] = ()) -> set[str]:
    """Values that an environment or a command line marks as secrets by name, to be masked wherever they turn up."""
    found = {value for name, value in env.items() if is_secret(name, value)}
    flag = ""
    for argument in command:
        name, separator, value = argument.partition("=")
        if argument.startswith("-"):
            flag = "" if separator else name
            if separator and is_secret(name, value):
                found.add(value)
        elif flag and is_secret(flag, argument):
            found.add(argument)
    return {value for value in found if len(value) >= SHORTEST_KNOWN and not _COUNT.fullmatch(value)}
