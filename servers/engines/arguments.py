"""Reading an engine's own arguments: flags, their values, and keys that do not belong on a command line."""

from collections.abc import Sequence


def has_flag(arguments: tuple[str, ...], *flags: str) -> bool:
    """Whether one of the flags is among the arguments, as ``--flag value`` or ``--flag=value``."""
    return any(argument == flag or argument.startswith(f"{flag}=") for argument in arguments for flag in flags)


def key_by_environment(arguments: tuple[str, ...], variable: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Take a key off a command line, which every user of the machine can read, and hand it over as a variable.

    Args:
        arguments: the engine's own arguments; ``--api-key KEY`` or ``--api-key=KEY`` is taken out. Several keys stay.
        variable: where the engine reads its key from.

    Returns:
        the other arguments, and the variable where there was a key.
    """
    key = flag_value(arguments, "--api-key")
    if key is None:
        return arguments, {}
    left: list[str] = []
    skip = False
    for place, argument in enumerate(arguments):
        if skip:
            skip = False
        elif argument == "--api-key":
            after = arguments[place + 2 : place + 3]
            if after and not after[0].startswith("-"):
                return arguments, {}
            skip = True
        elif not argument.startswith("--api-key="):
            left.append(argument)
    return tuple(left), {variable: key}


def flag_value(arguments: tuple[str, ...], flag: str) -> str | None:
    """The value of a flag among the arguments; the last one counts."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def counted(arguments: tuple[str, ...], flags: Sequence[str]) -> int | None:
    """The number that one of the flags has among the arguments; None where none has one."""
    said = [value for flag in flags if (value := flag_value(arguments, flag)) is not None]
    return int(said[0]) if said and said[0].isdigit() and int(said[0]) > 0 else None
