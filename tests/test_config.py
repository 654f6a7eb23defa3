"""Defaults < kvload.toml < environment."""

from pathlib import Path

import pytest

from kvload.config import load_defaults, state_dir
from kvload.errors import UsageError

KNOWN = {"engine", "kv_memory"}


def write(folder: Path, text: str) -> None:
    (folder / "kvload.toml").write_text(text, encoding="utf-8")


def test_nothing_given_gives_nothing(tmp_path: Path) -> None:
    assert load_defaults("launch", KNOWN, folder=tmp_path, environ={}) == {}


def test_the_file_gives_values_with_dashes_or_underscores(tmp_path: Path) -> None:
    write(tmp_path, '[launch]\nengine = "vllm"\nkv-memory = "1GiB"\n[replay]\nspeed = 2\n')
    assert load_defaults("launch", KNOWN, folder=tmp_path, environ={}) == {"engine": "vllm", "kv_memory": "1GiB"}


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    write(tmp_path, '[launch]\nengine = "vllm"\n')
    environ = {"KVLOAD_LAUNCH_ENGINE": "embedded", "KVLOAD_API_KEY": "secret"}
    assert load_defaults("launch", KNOWN, folder=tmp_path, environ=environ) == {"engine": "embedded"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[launch]\nmotor = 1\n", "motor"),
        ("[launch\n", "cannot be read"),
        ("launch = 3\n", "not a table"),
    ],
)
def test_a_wrong_file_names_itself_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        load_defaults("launch", KNOWN, folder=tmp_path, environ={})
    assert "kvload.toml" in str(caught.value)


def test_an_unknown_variable_of_the_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="KVLOAD_LAUNCH_ENGIN"):
        load_defaults("launch", KNOWN, folder=tmp_path, environ={"KVLOAD_LAUNCH_ENGIN": "x"})


def test_state_dir_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "s"))
    assert state_dir() == tmp_path / "s"
    monkeypatch.delenv("KVLOAD_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir() == tmp_path / "kvload"
