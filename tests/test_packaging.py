"""What is built is what is in the tree: the three top-level folders, and nothing lost on the way."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kvload", "servers", "workloads", "analysis")


def tracked_files(*folders: str) -> set[str]:
    """Files git tracks below the folders, the three links left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def build(kind: str, out: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = out.iterdir()
    return archive


def test_wheel_holds_every_tracked_file_under_the_import_names(tmp_path: Path) -> None:
    expected = {name if name.startswith("kvload/") else f"kvload/{name}" for name in tracked_files(*FOLDERS)}
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert expected - held == set()
    assert not any(name.split("/")[0] != "kvload" for name in held)


def test_sdist_holds_every_tracked_file_of_the_four_folders(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as sdist:
        held = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert tracked_files(*FOLDERS) - held == set()


def test_the_checkout_imports_without_being_installed(tmp_path: Path) -> None:
    code = "import kvload.servers, kvload.workloads, kvload.analysis, kvload; print(kvload.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert Path(done.stdout.strip()) == ROOT / "kvload" / "__init__.py"


@pytest.mark.parametrize("folder", ["servers", "workloads", "analysis"])
def test_a_bare_top_level_import_is_refused(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"import kvload.{folder}" in done.stderr
