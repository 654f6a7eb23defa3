"""Which engines a Python environment holds, and their versions, without importing any of them."""

import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvload.errors import UsageError

_LOOK = """
import importlib.metadata, importlib.util, json, pathlib, sys
def version(*names):
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
def folder(module):
    spec = importlib.util.find_spec(module)
    return str(pathlib.Path(spec.origin).parent) if spec and spec.origin else None
modules = json.loads(sys.argv[1])
found = {m: {"version": version(*n), "folder": folder(m), "plain": version(m)} for m, n in modules.items()}
print(json.dumps(found))
"""
"""Asked of the other Python: metadata by several distribution names, and where the module lies."""


ROCM = "ROCm "


@dataclass(frozen=True)
class Installed:
    """One package as an environment holds it.

    Attributes:
        module: its import name.
        python: the interpreter of the environment.
        version: from its metadata, or from its own version file; None where neither says.
        folder: where the module lies; None where it is not installed.
        has_plain_metadata: whether metadata exists under the import name itself, which vLLM asks for.
        cuda: the CUDA version torch was built for in this environment, or the version of ROCm after :data:`ROCM`, which
            torch calls by the same names; None for a CPU build.
    """

    module: str
    python: str
    version: str | None
    folder: Path | None
    has_plain_metadata: bool = True
    cuda: str | None = None
    torch_version: str | None = None

    @cached_property
    def release(self) -> tuple[int, ...]:
        """The version's leading numbers, for comparisons: 0.32.0+cpu is (0, 32, 0); empty where unknown."""
        match = re.match(r"\d+(?:\.\d+)*", self.version or "")
        return tuple(map(int, match.group().split("."))) if match else ()


def find_python(python: str | None) -> str:
    """The interpreter to start an engine with: a path, a command, or an environment's folder.

    Raises:
        UsageError: there is none.
    """
    if python is None:
        return sys.executable
    path = Path(python).expanduser()
    if path.is_dir():
        path = path / "bin" / "python"
    if path.is_file():
        # The link is kept: the environment a python belongs to is found by the path it was called by.
        return str(path.absolute())
    found = shutil.which(python)
    if found is None:
        raise UsageError(f"there is no Python at '{python}'", where="--python", hint="as in /opt/vllm/bin/python")
    return found


def look(modules: Mapping[str, Sequence[str]], python: str, env: Mapping[str, str]) -> dict[str, Installed]:
    """What an environment holds of several packages.

    Args:
        modules: import names with the distribution names to look for, in order.
        python: the interpreter.
        env: the environment variables it will run with; PYTHONPATH counts.

    Returns:
        the packages that are there.

    Raises:
        UsageError: the interpreter does not run.
    """
    asked = {**{module: list(names) for module, names in modules.items()}, "torch": ["torch"]}
    try:
        done = subprocess.run(
            [python, "-c", _LOOK, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=dict(env),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the Python does not run: {error}", where=python) from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        reason = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise UsageError(f"the Python does not run: {reason[0]}", where=python) from error
    torch = answer.pop("torch")
    torch_version, cuda = _torch(torch["version"], torch["folder"])
    found = {}
    for module, row in answer.items():
        if row["folder"] is None:
            continue
        folder = Path(row["folder"])
        version = row["version"] or _version_file(folder)
        found[module] = Installed(module, python, version, folder, row["plain"] is not None, cuda, torch_version)
    return found


def own_packages(names: Collection[str]) -> set[str]:
    """Those of the packages that this environment holds; none of them is imported."""
    found = set()
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(name) is not None:
                found.add(name)
    return found


def own_torch_cuda() -> str | None:
    """The CUDA version that this environment's torch was built for, without importing it; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    return _torch(None, str(Path(spec.origin).parent))[1] if spec and spec.origin else None


def _version_file(folder: Path) -> str | None:
    for name in ("_version.py", "version.py"):
        try:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")[:20_000]
        except OSError:
            continue
        if match := re.search(
            r"^(?:__)?version(?:__)?(?:: *str)? *(?:= *version)? *= *['\"]([^'\"]{1,60})", text, re.M
        ):
            return match.group(1)
    return None


def _torch(version: str | None, folder: str | None) -> tuple[str | None, str | None]:
    if folder is None:
        return version, None
    try:
        text = (Path(folder) / "version.py").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return version, None
    built = {
        name: match.group(1)
        for name in ("cuda", "hip")
        if (match := re.search(rf"^{name}(?:: *[^=\n]+)? *= *['\"]([\d.]+)[^'\"]{{0,40}}['\"]", text, re.M))
    }
    return version, built.get("cuda") or (ROCM + built["hip"] if "hip" in built else None)
