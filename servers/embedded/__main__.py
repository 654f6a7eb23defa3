"""``python -m kvload.servers.embedded``: load a model, serve it until SIGTERM or Ctrl-C."""

import sys

from kvload.errors import ExitStatus, KvloadError
from kvload.servers.embedded.serving.arguments import parse_arguments


def main() -> int:
    """Run the server; returns the exit status."""
    options = parse_arguments()
    say("starting")
    from kvload.servers.embedded.serving.server import serve

    try:
        serve(options, say)
    except KvloadError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return int(error.exit_status)
    except KeyboardInterrupt:
        return int(ExitStatus.INTERRUPTED)
    return 0


def say(line: str) -> None:
    """A progress line for whoever started the server."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
