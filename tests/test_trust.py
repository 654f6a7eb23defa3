"""A kvload.toml that came with a folder: what it may not do until its user said so."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvload import trust
from kvload.cli.main import run
from kvload.config import Known, load_defaults
from kvload.errors import UsageError

OPTIONS = Known.of("url", "python", "env", "host", "header", "speed", "name", lists={"header"})


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    for name in ("KVLOAD_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "repository"
    made.mkdir()
    return made


def write(folder: Path, text: str) -> Path:
    path = folder / "kvload.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "setting", ['python = "./evil"', 'env = ["LD_PRELOAD=./x.so"]', 'host = "0.0.0.0"', 'header = ["A: b"]']
)
def test_guarded_settings_need_the_files_content_to_be_allowed(folder: Path, setting: str) -> None:
    path = write(folder, f"[launch]\n{setting}\n")
    with pytest.raises(UsageError, match="taken only from a file you allowed") as caught:
        load_defaults("launch", OPTIONS, folder=folder, environ={})
    assert setting.partition(" ")[0] in str(caught.value)
    trust.allow(path)
    assert load_defaults("launch", OPTIONS, folder=folder, environ={})
    write(folder, f'[launch]\n{setting}\nname = "changed"\n')
    with pytest.raises(UsageError):
        load_defaults("launch", OPTIONS, folder=folder, environ={})


def test_the_permission_is_for_one_file_and_can_be_taken_back(folder: Path, tmp_path: Path) -> None:
    path = write(folder, '[launch]\npython = "x"\n')
    trust.allow(path)
    other = tmp_path / "other"
    other.mkdir()
    write(other, '[launch]\npython = "x"\n')
    with pytest.raises(UsageError):
        load_defaults("launch", OPTIONS, folder=other, environ={})
    trust.deny(path)
    with pytest.raises(UsageError):
        load_defaults("launch", OPTIONS, folder=folder, environ={})


def test_a_file_named_on_the_command_line_is_believed(folder: Path) -> None:
    path = write(folder, '[launch]\npython = "x"\n')
    assert load_defaults("launch", OPTIONS, named=path, environ={}) == {"python": "x"}
    with pytest.raises(UsageError, match="cannot be read"):
        load_defaults("launch", OPTIONS, named=folder / "absent.toml", environ={})


@pytest.mark.parametrize("variable", ["KVLOAD_API_KEY", "OPENAI_API_KEY", "KVLOAD_REPLAY_HEADER"])
def test_an_address_is_guarded_where_a_key_would_go_to_it(folder: Path, variable: str) -> None:
    write(folder, '[replay]\nurl = "http://127.0.0.1:9"\n')
    assert load_defaults("replay", OPTIONS, folder=folder, environ={}) == {"url": "http://127.0.0.1:9"}
    with pytest.raises(UsageError, match="'url'"):
        load_defaults("replay", OPTIONS, folder=folder, environ={variable: "sk-planted"})
    with pytest.raises(UsageError, match="'url'"):
        load_defaults("replay", OPTIONS, folder=folder, environ={}, key_on_command_line=True)


def test_the_file_is_named_whenever_it_is_used(folder: Path) -> None:
    told: list[tuple[Path, list[str]]] = []
    path = write(folder, "[replay]\nspeed = 2\n")
    load_defaults("replay", OPTIONS, folder=folder, environ={}, on_file=lambda *said: told.append(said))
    load_defaults("launch", OPTIONS, folder=folder, environ={}, on_file=lambda *said: told.append(said))
    assert told == [(path, ["speed"])]


def test_repeatable_options_can_be_given_by_a_variable() -> None:
    environ = {"KVLOAD_REPLAY_HEADER": "A: b\nC: d"}
    assert load_defaults("replay", OPTIONS, environ=environ) == {"header": ["A: b", "C: d"]}


def test_doctor_executes_nothing_that_a_file_names(folder: Path, tmp_path: Path) -> None:
    evil = folder / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path / 'executed'}\n", encoding="utf-8")
    evil.chmod(0o755)
    path = write(folder, '[doctor]\npython = ["./evil"]\n')
    trust.allow(path)
    done = subprocess.run(
        [sys.executable, "-m", "kvload", "doctor"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


def test_the_command_line_tells_and_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    write(folder, '[report]\nlevel = 0.9\n[replay]\nurl = "http://127.0.0.1:9"\n')
    assert run(["report", "nowhere"]) == 2
    assert "settings from ./kvload.toml: level" in capsys.readouterr().err
    assert run(["replay", "sample:demo", "--header", "Authorization: Bearer planted"]) == 2
    assert "kvload config allow" in capsys.readouterr().err
    assert run(["config", "allow"]) == 0
    assert run(["replay", "sample:demo", "--header", "Authorization: Bearer planted"]) == 3
    assert run(["--config"]) == 2
