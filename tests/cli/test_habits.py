"""Spellings of other tools: the same where they mean the same, a sentence where there is another way."""

import pytest

from kvload.cli.habits import OTHER_WORDS, explain, translate
from kvload.cli.main import run
from kvload.errors import UsageError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["t.jsonl", "--base-url", "http://h:1"], ["t.jsonl", "--url", "http://h:1"]),
        (["t.jsonl", "--base-url=http://h:1"], ["t.jsonl", "--url", "http://h:1"]),
        (["--host", "h", "t.jsonl", "--port", "8000"], ["t.jsonl", "--url", "http://h:8000"]),
        (["t.jsonl", "--port=8000"], ["t.jsonl", "--url", "http://127.0.0.1:8000"]),
        (["t.jsonl", "--ignore-eos", "--disable-tqdm"], ["t.jsonl", "--mode", "forced", "--quiet"]),
        (["-h"], ["--help"]),
        (["t.jsonl", "--", "--port", "1", "-h"], ["t.jsonl", "--", "--port", "1", "-h"]),
    ],
)
def test_what_means_the_same_is_done(given: list[str], meant: list[str]) -> None:
    assert translate("replay", given) == meant


def test_a_host_without_a_port_is_no_address() -> None:
    with pytest.raises(UsageError, match="--url"):
        translate("replay", ["t.jsonl", "--host", "h"])


def test_launch_keeps_its_own_host_and_port() -> None:
    assert translate("launch", ["--host", "h", "--port", "1"]) == ["--host", "h", "--port", "1"]


@pytest.mark.parametrize("given", [["--model", "M"], ["--model=M"], ["M"]])
def test_launch_takes_its_model_as_the_other_commands_do(given: list[str]) -> None:
    assert translate("launch", [*given, "--port", "1", "--", "--model", "x"]) == [
        "M",
        "--port",
        "1",
        "--",
        "--model",
        "x",
    ]


@pytest.mark.parametrize(
    "option", ["--dataset-name", "--backend", "--tokenizer", "--save-result", "--percentile-metrics"]
)
def test_an_option_of_others_is_answered_with_what_to_do(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", "t.jsonl", option, "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {option}: ")
    assert (explain(option) or "?") in said
    assert "Possible options" not in said


def test_no_option_of_ours_is_explained_away() -> None:
    from kvload.cli.main import load_command

    for name in ("replay", "compare", "sweep", "capacity"):
        ours = {flag for parameter in load_command(name).params for flag in parameter.opts}
        assert not ours & OTHER_WORDS.keys()


def test_help_of_a_command_in_three_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["help", "status"], ["status", "--help"], ["status", "-h"]):
        assert run(words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert "kvload status" in shown[0]
