"""Where the real vLLM is: ``$KVLOAD_VLLM_PYTHON``, or where ``install.sh`` puts it."""

import os
import subprocess
from pathlib import Path

PYTHON = (
    os.environ.get("KVLOAD_VLLM_PYTHON")
    or subprocess.run(
        [str(Path(__file__).with_name("install.sh")), "--where"], capture_output=True, text=True, check=True
    ).stdout.strip()
)
"""An environment's folder, or its interpreter."""
