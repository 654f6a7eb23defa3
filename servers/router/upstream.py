"""The servers behind a router."""

from dataclasses import dataclass, field

from kvload.address import Address
from kvload.errors import UsageError
from kvload.records import ServerInfo

MOST_NAME = 64


@dataclass
class Upstream:
    """One of them, as the router sees it at the moment.

    Attributes:
        name: what answers are marked with.
        info: what it says of itself.
        in_flight: requests under way.
        healthy: it answered when it was last asked, or has not been asked yet.
    """

    name: str
    address: Address
    info: ServerInfo | None = None
    in_flight: int = 0
    healthy: bool = True
    answered: dict[int, int] = field(default_factory=dict)

    def count(self, status: int) -> None:
        """One more answer with this status; 0 for none."""
        self.answered[status] = self.answered.get(status, 0) + 1


def parse_to(texts: list[str]) -> list[Upstream]:
    """Servers from ``NAME=http://HOST:PORT``, the one with the full cache first.

    Raises:
        UsageError: one is malformed, two have the same name, or there is none.
    """
    found: list[Upstream] = []
    for text in texts:
        # a method's name may hold the sign itself: snapkv:budget=256=http://...
        head, separator, tail = text.partition("=http")
        name, url = (head, f"http{tail}") if separator else text.rpartition("=")[::2]
        fits = name.isascii() and name.isprintable() and name.strip() == name and 0 < len(name) <= MOST_NAME
        if not url or not fits:
            raise UsageError(f"'{text}' names no server", where="--to", hint="write --to full=http://127.0.0.1:8000")
        if name in {one.name for one in found}:
            raise UsageError(f"two servers are called '{name}'", where="--to")
        found.append(Upstream(name, Address.parse(url, where=f"--to {name}")))
    if not found:
        raise UsageError("no server to send requests to", where="--to", hint="--to full=URL --to fp8=URL")
    return found
