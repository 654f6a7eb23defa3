"""What is built is what is in the tree, and it works where only what it declares is installed."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("kvload", "servers", "workloads", "analysis")
CHECKOUT_ONLY = (
    "kvload/scripts/",
    "kvload/analysis/bench.py",
    "kvload/workloads/bench/",
    "kvload/servers/embedded/bench/",
    "kvload/servers/kernels/triton/bench.py",
    "kvload/servers/probe/training/",
)
"""What a wheel leaves out: benches, the scripts behind the docs' tables, what trained the probe model."""

ENGINE_ONLY = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "aiohttp", "uvloop", "triton")
"""Packages that only ``kvload[engine]`` brings."""


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def test_wheel_holds_every_tracked_file_but_what_a_checkout_alone_runs(wheel: Path) -> None:
    expected = {name if name.startswith("kvload/") else f"kvload/{name}" for name in tracked_files(*FOLDERS)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert expected - held == {name for name in expected if name.startswith(CHECKOUT_ONLY)}
    assert not any(name.split("/")[0] != "kvload" or name.startswith(CHECKOUT_ONLY) for name in held)
    assert {"kvload/py.typed", "kvload/servers/probe/model/model.safetensors"} <= held


def test_nothing_in_the_wheel_imports_what_it_leaves_out() -> None:
    left_out = tuple(name.removesuffix("/").removesuffix(".py").replace("/", ".") for name in CHECKOUT_ONLY)
    wrong = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if not (name if folder == "kvload" else f"kvload/{name}").startswith(CHECKOUT_ONLY):
                text = path.read_text(encoding="utf-8")
                wrong |= {
                    (name, module) for module in left_out if re.search(rf"(from|import) {re.escape(module)}\b", text)
                }
    assert wrong == set()


def test_sdist_holds_every_tracked_file_and_the_pages_it_links_to(sdist: Path) -> None:
    pages = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "constraints.txt")
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert tracked_files(*FOLDERS, "tests", "docs") - held == set()
    assert set(pages) <= held
    linked = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert all(any(name == link or name.startswith(f"{link.rstrip('/')}/") for name in held) for link in linked)


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


def test_every_import_is_declared() -> None:
    """What the light parts import stands in the dependencies; what the engine alone imports stands in its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_.-]", text)[0].lower().replace("-", "_") for text in requirements}

    base, engine = names(project["dependencies"]), names(project["optional-dependencies"]["engine"])
    assert not base & set(ENGINE_ONLY)
    assert {"torch", "transformers", "safetensors", "aiohttp"} <= engine


# -- without what the engine needs ---------------------------------------------------------------------------------


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """An environment in which the engine's packages cannot be imported, and this checkout is not on the path."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import sys

            class Blocked:
                def find_spec(self, name, path=None, target=None):
                    if name.split(".")[0] in {ENGINE_ONLY!r}:
                        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

            sys.meta_path.insert(0, Blocked())
        """),
        encoding="utf-8",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVLOAD_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(blocker), "KVLOAD_STATE_DIR": str(tmp_path / "state")}


def with_path(environ: dict[str, str], folder: Path) -> dict[str, str]:
    return environ | {"PYTHONPATH": os.pathsep.join((str(folder), environ["PYTHONPATH"]))}


def unpacked_wheel(wheel: Path, sdist: Path, folder: Path) -> Path:
    del sdist
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)  # noqa: S202  built a moment ago
    return folder


def unpacked_sdist(wheel: Path, sdist: Path, folder: Path) -> Path:
    del wheel
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    assert not (root / "kvload" / "servers").exists()
    return root


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs ``python -m kvload`` with arguments in an environment, away from the checkout."""
    folder = tmp_path / "work"
    folder.mkdir()

    def call(
        environ: dict[str, str], *arguments: str, python: str = sys.executable
    ) -> "subprocess.CompletedProcess[str]":
        command = [python, "-m", "kvload", *arguments]
        return subprocess.run(
            command, env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )

    return call


def replay_and_report(
    run: Callable[..., "subprocess.CompletedProcess[str]"], environ: dict[str, str], python: str = sys.executable
) -> None:
    """A replay against the mock server, its report, and a comparison of two runs."""
    command = [python, "-m", "kvload", "mock", "--ttft", "5ms", "--itl", "1ms"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as mock:
        try:
            assert mock.stdout is not None
            url = json.loads(mock.stdout.readline())["url"]
            for out in ("a", "b"):
                options = ["--url", url, "--limit", "3", "--speed", "100", "--max-tokens", "4", "--out", out]
                done = run(environ, "replay", "sample:demo", *options, python=python)
                assert done.returncode == 0, done.stderr
        finally:
            mock.terminate()
    reported = run(environ, "report", "a", "--json", "--html", "a.html", python=python)
    assert reported.returncode == 0, reported.stderr
    assert json.loads(reported.stdout)["completed"] == 3
    compared = run(environ, "compare", "a", "b", "--json", python=python)
    assert compared.returncode == 0, compared.stderr


@pytest.mark.parametrize("unpack", [unpacked_wheel, unpacked_sdist])
def test_an_unpacked_archive_replays_without_the_engines_packages(
    unpack: Callable[[Path, Path, Path], Path],
    wheel: Path,
    sdist: Path,
    tmp_path: Path,
    light: dict[str, str],
    run: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    root = unpack(wheel, sdist, tmp_path / "archive")
    environ = with_path(light, root)
    code = "import kvload, kvload.servers; print(kvload.__file__, kvload.servers.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert all(Path(path).is_relative_to(root) for path in found.stdout.split())
    replay_and_report(run, environ)
    assert run(environ, "traces", "describe", "sample:demo").returncode == 0
    assert run(environ, "methods", "kivi-4").returncode == 0
    refused = run(environ, "launch")
    assert refused.returncode == 2
    assert "pip install 'kvload[engine]'" in refused.stderr


def declared(requirements: Iterable[str]) -> set[str]:
    """The distributions that these requirements bring, and those that they bring in turn, as installed here."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key not in found:
            found.add(key)
            texts = importlib.metadata.requires(name) or []
            waiting += [(Requirement(text), each) for text in texts for each in ("", *requirement.extras)]
    return {key.partition("[")[0] for key in found}


def link(names: set[str], site: Path) -> None:
    """Put these distributions of this environment, and no others, into another one."""
    for name in names:
        for file in importlib.metadata.files(name) or []:
            if file.parts[0] != "..":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(Path(str(file.locate())).resolve())


@pytest.mark.slow
def test_a_wheel_in_an_environment_of_its_own(
    wheel: Path, tmp_path: Path, run: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """``pip install kvload`` brings no torch, and what it brings is enough."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (metadata,) = site.glob("kvload-*.dist-info")
    names = declared(importlib.metadata.PathDistribution(metadata).requires or [])
    link(names, site)
    assert subprocess.run([*pip, "check"], capture_output=True, check=False).returncode == 0
    listed = subprocess.run([*pip, "list", "--format", "json"], capture_output=True, check=True)
    installed = {canonicalize_name(entry["name"]) for entry in json.loads(listed.stdout)}
    assert installed == names | {"kvload"}
    assert not {name.replace("-", "_") for name in installed} & set(ENGINE_ONLY)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVLOAD_", "PYTHON"))}
    replay_and_report(run, kept | {"KVLOAD_STATE_DIR": str(tmp_path / "state")}, python)
