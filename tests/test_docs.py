"""The pages: every link leads somewhere, and every command in them is one that kvload takes."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvload.cli.habits import translate
from kvload.cli.main import COMMANDS, load_command

ROOT = Path(__file__).parents[1]
INDENTED = re.compile(r"^(?: {4}|\t)(.*)$")
SEPARATORS = {"&&", "||", ";", "|", "&", ">", ">>", "<", "2>", "2>&1"}


def pages() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def code(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of code blocks, continued ones joined, and what stands between backticks; and whether it is the latter."""
    fenced, held = False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        inside = line.strip() if fenced else (match[1].strip() if (match := INDENTED.match(line)) else None)
        if inside is None:
            held = ""
            continue
        held += inside
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        yield held, False
        held = ""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from ((" ".join(span.split()), True) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose))


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words behind every ``kvload`` that begins a command, and whether they may be a part of a command.

    They are in a sentence, and where ``...`` stands among them.
    """
    for block, is_inline in code(text):
        if "kvload " not in block:
            continue
        try:
            lexer = shlex.shlex(block, posix=True, punctuation_chars=";&|<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:
            # an apostrophe in output that is shown, not a command
            continue
        while words:
            end = next((place for place, word in enumerate(words) if word in SEPARATORS), len(words))
            part, words = words[:end], words[end + 1 :]
            while part and re.fullmatch(r"[A-Z_]+=.*", part[0]):
                part = part[1:]
            if len(part) > 1 and part[0] == "kvload" and part[1] != "help" and part[1].isalpha():
                part = part[1:]
                stand_ins = {"N": "1", "...": ""}
                filled = [stand_ins.get(word, word) for word in (word.strip("[]") for word in part)]
                yield [word for word in filled if word], is_inline or "..." in part


def parse(words: list[str]) -> None:
    """Have kvload's own parser read a command, without running it."""
    name, *arguments = words
    command: Any = load_command(name)
    arguments = translate(name, arguments)
    while getattr(command, "commands", None) and arguments:
        context = command.make_context(name, list(arguments), resilient_parsing=True)
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(f"kvload {name}", arguments)


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in pages()])
def test_every_command_in_a_page_is_taken(page: str) -> None:
    wrong = []
    for words, is_part in commands((ROOT / page).read_text(encoding="utf-8")):
        try:
            assert words[0] in COMMANDS, f"no command '{words[0]}'"
            parse(words)
        except SystemExit:
            continue
        except Exception as error:
            text = getattr(error, "format_message", lambda error=error: str(error))()
            if not (is_part and re.search("^$|Missing (argument|option|command)|requires an argument", text)):
                wrong.append(f"kvload {shlex.join(words)}: {text}")
    assert wrong == []


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in pages()])
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        if ":" in name:
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (heading and heading not in headings(target)):
            wrong.append(link)
    assert wrong == []


def headings(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in pages()])
def test_every_make_target_of_a_page_is_one(page: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = re.findall(r"(?:^ {4}|`)make ([a-z][a-z-]*[a-z])\b(?!-)", (ROOT / page).read_text(encoding="utf-8"), re.M)
    assert set(named) <= targets
