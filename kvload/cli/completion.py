"""``kvload completion``: completion of commands, options and methods in a shell, made from the commands."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

SHELLS = ("bash", "zsh", "fish")


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print a completion script: eval "$(kvload completion bash)"."""
    from kvload.cli.main import COMMANDS, load_command
    from kvload.errors import UsageError
    from kvload.servers.catalogue.methods import METHODS

    if shell not in SHELLS:
        raise UsageError(f"'{shell}' is not a shell that kvload knows", where="SHELL", hint=", ".join(SHELLS))
    words = {name: _words(load_command(name)) for name in COMMANDS}
    if shell == "fish":
        print(fish(words, COMMANDS, list(METHODS)))
    else:
        print(bash(words, list(METHODS), zsh=shell == "zsh"))


def _words(command: object) -> list[str]:
    """A command's long options and its own commands."""
    options = [flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")]  # type: ignore[attr-defined]
    return sorted({*options, "--help", *getattr(command, "commands", {})})


def bash(words: Mapping[str, Sequence[str]], methods: Sequence[str], *, zsh: bool) -> str:
    """A bash script; zsh runs it through ``bashcompinit``."""
    cases = "\n".join(f'    {name}) words="{" ".join(options)}" ;;' for name, options in words.items())
    head = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return f"""{head}_kvload() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{" ".join(words)} help"
  elif [ "${{COMP_WORDS[COMP_CWORD-1]}}" = --method ]; then
    words="{" ".join(methods)}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "$current" in -*) ;; *) words="" ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _kvload kvload"""


def fish(words: Mapping[str, Sequence[str]], helps: Mapping[str, str], methods: Sequence[str]) -> str:
    """A fish script."""
    lines = []
    for name, options in words.items():
        text = helps[name].replace("'", "\\'")
        lines.append(f"complete -c kvload -n __fish_use_subcommand -f -a {name} -d '{text}'")
        for option in options:
            if option.startswith("--"):
                lines.append(f"complete -c kvload -n '__fish_seen_subcommand_from {name}' -l {option[2:]}")
    lines.append(f"complete -c kvload -l method -x -a '{' '.join(methods)}'")
    return "\n".join(lines)
