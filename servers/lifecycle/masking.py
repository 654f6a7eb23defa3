"""Secrets in command lines and environments, masked before anything is stored or shown."""

import re
from collections.abc import Mapping, Sequence

MASK = "***"
SECRET_NAME = re.compile(r"(?i)(api[-_]?key|token|secret|password|passwd|credential|authorization)s?$")
KEPT_VARIABLE = re.compile(
    r"^(VLLM|SGLANG|SGL|KVLOAD|CUDA|NCCL|NVIDIA|HF|TRANSFORMERS|TORCH|PYTORCH|TRITON|OMP|MKL|TOKENIZERS|FLASHINFER)_"
    r"|^(PYTHONPATH|LD_LIBRARY_PATH|LD_PRELOAD)$"
)
"""Variables that can change how an engine runs; the rest of the environment is nobody's business."""


def mask_command(command: Sequence[str]) -> list[str]:
    """The command line with the values of flags such as ``--api-key`` masked."""
    masked: list[str] = []
    hide_next = False
    for argument in command:
        flag, separator, _ = argument.partition("=")
        secret = flag.startswith("-") and SECRET_NAME.search(flag) is not None
        if hide_next and not argument.startswith("--"):
            masked.append(MASK)
        elif secret and separator:
            masked.append(f"{flag}={MASK}")
        else:
            masked.append(argument)
        # An API key flag may take several values.
        hide_next = (secret and not separator) or (hide_next and not argument.startswith("-"))
    return masked


def mask_env(env: Mapping[str, str], *, without: Sequence[str] = ()) -> dict[str, str]:
    """The variables that matter to an engine, secrets masked.

    Args:
        env: the environment it runs in.
        without: names to leave out.
    """
    return {
        name: MASK if SECRET_NAME.search(name) else value
        for name, value in sorted(env.items())
        if KEPT_VARIABLE.search(name) and name != "KVLOAD_SERVER_TOKEN" and name not in without
    }
