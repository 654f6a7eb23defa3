"""Defaults < kvload.toml < environment."""

import os
from pathlib import Path

import pytest

from kvload.cli.main import run
from kvload.config import Known, load_defaults, state_dir
from kvload.errors import UsageError

KNOWN = Known.of("engine", "kv-memory")


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


GROUP = Known(commands={"convert": Known({"format": "format_name", "num-prompts": "limit", "limit": "limit"})})


def test_options_have_their_command_lines_names_and_groups_have_tables(tmp_path: Path) -> None:
    write(tmp_path, '[traces.convert]\nformat = "mooncake"\nnum-prompts = 5\n')
    environ = {"KVLOAD_TRACES_CONVERT_NUM_PROMPTS": "7"}
    found = load_defaults("traces", GROUP, folder=tmp_path, environ={})
    assert found == {"convert": {"format_name": "mooncake", "limit": 5}}
    assert load_defaults("traces", GROUP, folder=tmp_path, environ=environ)["convert"]["limit"] == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[traces.convert]\nformat_name = "x"\n', "no option 'format_name'"),
        ("[traces.convert]\nlimit = 1\nnum-prompts = 2\n", "one option"),
        ("[traces.cnvert]\nlimit = 1\n", "no option 'cnvert'"),
        ("[traces]\nlimit = 1\n", "no option 'limit'"),
        ("[repaly]\nlimit = 1\n", "no command 'repaly'"),
        ("limit = 1\n", "outside a table"),
    ],
)
def test_what_nobody_has_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        load_defaults("traces", GROUP, folder=tmp_path, environ={}, tables=("traces", "replay"))


@pytest.mark.parametrize("variable", ["KVLOAD_TRACES_LIMIT", "KVLOAD_TRACES_CONVERT_FORMAT_NAME"])
def test_a_variable_of_a_group_names_the_command_too(variable: str) -> None:
    with pytest.raises(UsageError, match=variable):
        load_defaults("traces", GROUP, environ={variable: "1"})


def test_a_groups_settings_reach_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "[traces.sample]\nrequests = 3\nseed = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVLOAD_TRACES_SAMPLE_SEED", "5")
    assert run(["traces", "sample", "-o", "t.jsonl"]) == 0
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 3
    assert run(["traces", "sample", "-o", "u.jsonl", "--requests", "3", "--seed", "5"]) == 0
    assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "u.jsonl").read_bytes()
    assert "sample.requests, sample.seed" in capsys.readouterr().err


def test_what_is_in_force_is_shown_with_its_source_and_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, '[replay]\nslo = "ttft=1s"\nheader = ["A: hunter2"]\n[traces.describe]\nlimit = 3\n')
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("KVLOAD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KVLOAD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KVLOAD_REPLAY_NUM_WARMUPS", "9")
    monkeypatch.setenv("KVLOAD_API_KEY", "sk-hunter2")
    assert run(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = dict(line.split(" = ", 1) for line in lines if " = " in line)
    assert shown["replay.slo"] == f'"ttft=1s"    # {tmp_path / "kvload.toml"}'
    assert shown["replay.num-warmups"] == '"9"    # KVLOAD_REPLAY_NUM_WARMUPS'
    assert shown["replay.header"].startswith("***")
    assert "refused until" in shown["replay.header"]
    assert shown["traces.describe.limit"].startswith("3 ")
    assert shown["replay.timeout"] == '"10min"    # default'
    assert shown["replay.mode"] == '"auto"    # default'
    assert shown["state folder"].endswith("# KVLOAD_STATE_DIR")
    assert "KVLOAD_API_KEY is set" in lines
    assert "hunter2" not in "".join(lines)
    assert run(["config", "--changed"]) == 0
    assert "default" not in capsys.readouterr().out.split("state folder")[0]
