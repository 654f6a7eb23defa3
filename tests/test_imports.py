"""The import direction of the house, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {path.stem for path in (ROOT / "kvload").glob("*.py")} - {"__init__", "__main__"}
"""The contracts: whatever lies in ``kvload/`` itself."""

HEAVY = {"torch", "transformers", "scipy", "locust", "gevent", "numpy", "aiohttp", "rich", "typer", "vllm", "sglang"}


def kvload_imports(path: Path) -> set[str]:
    """Every dotted name below ``kvload`` that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == "kvload" and "." in name}


@pytest.mark.parametrize("folder", ["servers", "workloads", "analysis"])
def test_the_three_parts_know_only_themselves_and_the_contracts(folder: str) -> None:
    allowed = SHARED | {folder, "__version__"}
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in kvload_imports(path)
        if name.split(".")[1] not in allowed
    }
    assert wrong == set()


def test_the_contracts_know_nobody() -> None:
    wrong = {
        f"{module}: {name}"
        for module in SHARED
        for name in kvload_imports(ROOT / "kvload" / f"{module}.py")
        if name.split(".")[1] not in SHARED | {"__version__"}
    }
    assert wrong == set()


FLOORS = {
    "servers": [
        {"launcher", "checkup"},
        {"verification"},
        {"lifecycle"},
        {"router"},
        {"watch"},
        {"engines", "simulator"},
        {"embedded", "plugins"},
        {"catalogue", "host", "kernels", "probe"},
        {"gguf"},
    ],
    "workloads": [
        {"bench"},
        {"calibration", "swarm"},
        {"run"},
        {"schedule"},
        {"client", "mock"},
        {"traces", "clock"},
    ],
    "analysis": [
        {"bench"},
        {"report"},
        {"gates"},
        {"comparison", "prediction", "routing", "sweep"},
        {"run"},
        {"quality", "words"},
        {"statistics"},
        {"records"},
    ],
    "servers/embedded": [
        {"bench", "__main__"},
        {"serving"},
        {"core"},
        {"model"},
        {"cache"},
        {"account", "compression"},
    ],
}
"""Rooms from the roof down: a room imports from the floors below it, and nothing beside or above."""


def rooms_between(folder: str) -> set[tuple[str, str]]:
    """Every pair of rooms of a folder, the first of which imports the second."""
    package = ("kvload", *folder.split("/"))
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        room = path.relative_to(ROOT / folder).with_suffix("").parts[0]
        for name in kvload_imports(path):
            parts = tuple(name.split("."))
            if parts[: len(package)] == package and len(parts) > len(package) and parts[len(package)] != room:
                found.add((room, parts[len(package)]))
    return {(room, other) for room, other in found if room != "__init__"}


@pytest.mark.parametrize("folder", list(FLOORS))
def test_rooms_import_downwards_only(folder: str) -> None:
    level = {room: number for number, floor in enumerate(FLOORS[folder]) for room in floor}
    wrong = {(room, other) for room, other in rooms_between(folder) if level[room] >= level[other]}
    assert wrong == set()


def test_the_kernels_know_nothing_of_kvload() -> None:
    """They are loaded inside an engine's process, where nothing else of kvload is."""
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "servers" / "kernels").rglob("*.py")
        for name in kvload_imports(path)
        if not name.startswith("kvload.servers.kernels")
    }
    assert wrong == set()


def test_the_scheduler_and_the_page_accounts_need_no_torch() -> None:
    """A simulator keeps the same books without any tensor."""
    modules = [f"kvload.servers.embedded.account.{name}" for name in ("tokens", "blocks", "scored", "heads")]
    code = f"import sys, kvload.servers.embedded.core.scheduler, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()} & {"torch", "transformers"} == set()


def test_engines_are_launched_never_imported() -> None:
    wrong = set()
    for folder in ("kvload/cli", "servers", "workloads", "analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.is_relative_to(ROOT / "servers" / "plugins"):
                continue  # loaded by the engines, never by kvload
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                wrong |= {f"{path}: {name}" for name in modules if name.split(".")[0] in {"vllm", "sglang"}}
    assert wrong == set()


def test_nobody_asks_which_engine_it_is() -> None:
    """What is known of an engine stands in its folder, as data that others read off its adapter."""
    names = {path.name for path in (ROOT / "servers" / "engines").iterdir() if path.is_dir()} - {"__pycache__"}
    wrong = set()
    for folder in ("kvload/cli", "kvload/experiment", "servers", "workloads", "analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.relative_to(ROOT).parts[:2] == ("servers", "engines") and path.parent.name in names:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    compared = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                    if compared & names:
                        wrong.add(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == set()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from kvload.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert loaded & HEAVY == set()


def loaded_by(module: str) -> set[str]:
    """Modules of kvload that importing one loads."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if name.startswith("kvload.")}


def test_the_sender_loads_no_trace_readers_and_its_loop_no_decoder() -> None:
    worker = loaded_by("kvload.workloads.swarm.worker")
    assert not {name for name in worker if name.startswith("kvload.workloads.traces.formats")}
    loop = loaded_by("kvload.workloads.client.loop")
    assert not loop & {f"kvload.workloads.client.{name}" for name in ("answer", "sse", "fast", "counting", "events")}


def test_pages_are_accounted_for_and_steps_are_scheduled_without_torch() -> None:
    code = "import sys, kvload.servers.embedded.core.scheduler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_launching_an_engine_loads_no_torch() -> None:
    """A light install launches and measures engines that live elsewhere."""
    code = (
        "import sys\n"
        "import kvload.servers.launcher\n"
        "from kvload.servers.engines.base import adapters\n"
        "print(len(list(adapters())), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *modules = done.stdout.split()
    assert int(count) >= 3
    assert not {"torch", "triton", "transformers"} & set(modules)
