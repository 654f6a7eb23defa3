"""The ``kvload`` command: finds the command's module, runs it, and turns errors into messages and exit codes."""

import difflib
import errno
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvload import __version__
from kvload.cli.habits import explain, translate
from kvload.config import Known, load_defaults
from kvload.errors import ExitStatus, KvloadError, UsageError
from kvload.terminal import plain

COMMANDS = {
    "launch": "Start a server, with or without KV-cache compression, and wait until it answers.",
    "status": "Show the servers that were launched.",
    "logs": "Show a server's log.",
    "stop": "Stop a server.",
    "replay": "Replay a trace against a server and report what happened.",
    "compare": "Replay one trace under several methods and compare request by request.",
    "sweep": "Raise the load on several methods and show what each carries within the limits.",
    "predict": "Predict a trace under each method, from step times of runs that were made already.",
    "plan": "How many servers a trace needs under each method, and what they cost.",
    "capacity": "Find the highest request rate that meets the limits.",
    "report": "Render the report of a run folder again.",
    "export": "Write a run's requests as CSV or Parquet, its figures for Prometheus.",
    "import": "Make run folders of what vllm bench serve and AIPerf saved.",
    "slo": "List published limits that --slo takes by name.",
    "schema": "Print the JSON schemas of what kvload writes.",
    "route": "Tell which requests suffer under compression, and send those to the full cache.",
    "lengths": "Tell what each method does to the length of answers, for kvload predict.",
    "quality": "Compare per-sample score files of several arms.",
    "traces": "Describe, convert and sample traces.",
    "methods": "List the compression methods, or explain one.",
    "mock": "Run the mock server, whose timing is known.",
    "calibrate": "Measure the client's own error against the mock server.",
    "config": "Show the settings in force; allow a kvload.toml to run programs and use keys.",
    "completion": "Print a completion script for bash, zsh or fish.",
    "doctor": "Check this machine: engines, GPU, clocks, limits.",
}
"""Every command with its one-line help, kept here so that ``kvload --help`` imports no command.

Each has a module ``kvload.cli.NAME`` with a typer application named ``app``: one command, or a group of them."""


_NO_ROOM = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    }
)
"""What this machine has no more of, or does not allow with its files, rather than kvload a fault."""

KEY_FLAGS = frozenset({"--header", "-H", "--api-key", "--arm-key"})
"""Flags whose values go to the server as they are: the address must then come from the user, too."""

USAGE = """Usage: kvload COMMAND [OPTIONS] ...

What does KV-cache compression do to my traffic?

  kvload launch && kvload replay trace.jsonl

Commands:
{commands}

Options:
  --version   Show the version and exit.
  --config F  Take settings from this file instead of ./kvload.toml.
  -h, --help  Show this message, or with a command that command's own.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        argv: the arguments after the program's name; those of the process where None.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # as a shell's script leaves it for what it starts with "&": a replay heeds it nevertheless, a launch must too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = run(sys.argv[1:] if argv is None else list(argv))
    sys.exit(status)


def run(argv: list[str]) -> int:
    """Run the command line and return its exit status; problems the user can act on are printed to stderr."""
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except KvloadError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output went away (kvload ... | head): not an error of ours, and nothing can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.OK
    except (OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_ROOM:
            return _fault()
        text = "out of memory" if isinstance(error, MemoryError) else error.strerror
        where = "" if isinstance(error, MemoryError) or not error.filename else f"{error.filename}: "
        print(f"error: {plain(where + str(text))}", file=sys.stderr)
        return ExitStatus.MACHINE
    except Exception:
        return _fault()
    return status


def _fault() -> int:
    """A fault of kvload's own: its traceback, and a status that no gate and no server has."""
    traceback.print_exc()
    print("this is a fault in kvload: please report it with the lines above", file=sys.stderr)
    return ExitStatus.FAULT


def _dispatch(argv: list[str]) -> int:
    if len(argv) > 1 and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in {"-h", "--help", "help"}:
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())), end="")
        return ExitStatus.OK
    if argv[0] == "--version":
        print(f"kvload {__version__}")
        return ExitStatus.OK
    argv, named = _take_config(argv)
    if not argv:
        raise UsageError("--config FILE goes with a command", hint="kvload --help lists the commands")
    name, *arguments = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "kvload --help lists the commands"
        raise UsageError(f"no such command: '{name}'", hint=hint)
    return _run_command(name, translate(name, arguments), named)


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    """``--config FILE`` taken out of the arguments, wherever it stands before ``--``."""
    end = argv.index("--") if "--" in argv else len(argv)
    for place, argument in enumerate(argv[:end]):
        flag, separator, value = argument.partition("=")
        if flag != "--config":
            continue
        if not separator:
            if place + 1 >= end:
                raise UsageError("needs a file", where="--config")
            return argv[:place] + argv[place + 2 :], Path(argv[place + 1])
        return argv[:place] + argv[place + 1 :], Path(value)
    return argv, None


def _tell_file(path: Path, names: list[str]) -> None:
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(plain(f"settings from ./{shown}: {', '.join(names)}"), file=sys.stderr)


def load_command(name: str) -> Any:
    """A command, or a group of them, as click has it.

    Raises:
        UsageError: this Python has kvload's sources and not what they need.
    """
    try:
        import typer.main
    except ModuleNotFoundError as error:
        raise UsageError(
            f"kvload needs '{error.name}', which {sys.executable} does not have",
            hint="pip install kvload; in a checkout: make setup, then .venv/bin/kvload",
        ) from None

    command = typer.main.get_command(importlib.import_module(f"kvload.cli.{name}").app)
    _without_types(command)
    return command


def _without_types(command: Any) -> None:
    """Have ``--help`` show no Python type where it tells a reader nothing: of arguments, of switches, of itself."""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda **_context: ""
        elif parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    make_help = command.get_help_option

    def help_option(context: Any) -> Any:
        option = make_help(context)
        if option is not None:
            option.metavar = ""
        return option

    command.get_help_option = help_option
    for inner in getattr(command, "commands", {}).values():
        _without_types(inner)


def known_options(command: Any) -> Known:
    """What a command's table of settings may hold: its options under each of their names on the command line."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return Known(
        {
            flag.removeprefix("--"): parameter.name
            for parameter in options
            for flag in parameter.opts
            if flag.startswith("--") and parameter.name != "help"
        },
        {parameter.name for parameter in options if parameter.multiple},
        {name: known_options(inner) for name, inner in getattr(command, "commands", {}).items()},
    )


def _usage_error(said: str, hint: str) -> UsageError:
    """What the parser has to say, in the way that kvload says what is wrong."""
    text = said.replace("Value error, ", "").replace("Input should be", "must be").rstrip(".")
    if match := re.fullmatch(r"Invalid value for '([^']+)'[^:]*: (.+)", text, re.DOTALL):
        return UsageError(match[2], where=match[1], hint=hint)
    return UsageError(text[:1].lower() + text[1:], hint=hint)


def _run_command(name: str, arguments: list[str], named: Path | None) -> int:
    command = load_command(name)
    defaults = load_defaults(
        name,
        known_options(command),
        named=named,
        key_on_command_line=any(argument.partition("=")[0] in KEY_FLAGS for argument in arguments),
        tables=COMMANDS,
        on_file=_tell_file,
    )
    try:
        result = command.main(
            arguments, prog_name=f"kvload {name}", standalone_mode=False, default_map=defaults, obj={"config": named}
        )
    except Exception as error:
        # typer carries its own copy of click in some versions and uses click's in others: their exceptions are told by
        # what they can do, not by their class.
        if type(error).__name__ == "Abort":
            return ExitStatus.INTERRUPTED
        if not callable(getattr(error, "show", None)):
            raise
        if (option := getattr(error, "option_name", None)) and (instead := explain(option)):
            raise UsageError(instead, where=option) from None
        said = getattr(error, "format_message", lambda: "")()
        if not said:
            # no arguments where some are needed: its help
            error.show()  # type: ignore[attr-defined]
            return ExitStatus.USAGE
        inner = getattr(getattr(error, "ctx", None), "command_path", f"kvload {name}")
        raise _usage_error(said, f"see {inner} --help") from None
    return result if isinstance(result, int) else ExitStatus.OK
