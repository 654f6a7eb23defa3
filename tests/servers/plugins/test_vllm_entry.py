"""How the plugin gets into vLLM's processes, and that it stays out where it is not asked for."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kvload.servers.plugins import injection
from kvload.servers.plugins.vllm import contract, register, selection, table
from kvload.servers.plugins.vllm.selection import VARIABLE, Selection, SelectionError

ROOT = Path(__file__).parents[3]


def isolated(folder: Path, code: str, **env: str) -> str:
    """Run code in a Python that sees the standard library and one folder, as an engine's without kvload would."""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(folder), **env}, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("group", ["vllm.general_plugins", "sglang.srt.plugins"])
def test_an_environment_with_nothing_installed_finds_the_entry_point_and_imports_it(group: str, tmp_path: Path) -> None:
    folder = injection.plugin_folder(tmp_path)
    code = f"""
import sys
from importlib.metadata import entry_points
found = [point for point in entry_points(group="{group}") if point.name == "kvload"]
assert len(found) == 1, found
found[0].load()()
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    loaded = set(isolated(folder, code).split())
    assert "kvload" in loaded
    assert not loaded & {"torch", "numpy", "msgspec", "vllm", "sglang", "typer", "locust"}


def test_the_folder_hides_nothing_of_the_engines_environment(tmp_path: Path) -> None:
    folder = injection.plugin_folder(tmp_path)
    assert sorted(path.name for path in folder.iterdir() if path.name != "kvload") == [
        path.name for path in folder.glob("kvload-*.dist-info")
    ]
    assert (folder / "kvload").resolve() == ROOT / "kvload"
    assert injection.plugin_folder(tmp_path) == folder
    assert str(sysconfig.get_path("purelib")) not in isolated(folder, "import sys; print(sys.path)")


def test_the_package_and_the_folder_name_the_same_entry_point() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in project["entry-points"][group].items())
        for group in ("vllm.general_plugins", "sglang.srt.plugins")
    ]
    assert "\n".join(said) == injection.ENTRY_POINTS


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    register()
    assert "vllm" not in sys.modules


def test_a_selection_survives_its_variable() -> None:
    wanted = Selection("snapkv", {"budget": 1024, "window": 32})
    assert selection.read({VARIABLE: selection.write(wanted)}) == wanted
    assert str(wanted) == "snapkv:budget=1024,window=32"
    assert selection.read({}) is None
    assert selection.read({VARIABLE: "  "}) is None


@pytest.mark.parametrize("text", ["snapkv", "[]", '{"budget": 3}', '{"method": "h2o", "budget": "3"}', '{"method": 1}'])
def test_a_variable_that_holds_no_method_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(SelectionError, match=VARIABLE):
        selection.read({VARIABLE: text})


def test_an_unknown_method_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"method": "zip"}))
    with pytest.raises(contract.ContractError, match="no method 'zip'"):
        register()


def test_a_function_that_is_gone_or_takes_something_else_is_told_with_the_version() -> None:
    with pytest.raises(contract.ContractError, match=r"vLLM 9\.9 has no json:JSONDecoder\.decide"):
        contract.check_function(contract.Expected("json:JSONDecoder.decide", ()), "9.9")
    with pytest.raises(contract.ContractError, match=r"takes \(obj, fp, .*expects \(fp, obj\)"):
        contract.check_function(contract.Expected("json:dump", ("fp", "obj")), "9.9")
    contract.check_function(contract.Expected("json:dump", ("obj", "fp")), "9.9")


def test_releases_are_read_from_versions() -> None:
    assert contract.release_of("0.32.0+cpu") == (0, 32)
    with pytest.raises(contract.ContractError, match="not a release"):
        contract.release_of("dev")


def test_every_row_names_backends_that_exist_as_files() -> None:
    for name, row in table.ROWS.items():
        assert name == row.method
        for path in filter(None, (row.gpu, row.cpu)):
            module, _, attribute = path.rpartition(".")
            source = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
            assert f"class {attribute}" in source.read_text(encoding="utf-8")
