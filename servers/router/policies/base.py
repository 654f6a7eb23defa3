"""What a policy is asked, and what it may know."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kvload.errors import UsageError
from kvload.prompt_features import Asked, features
from kvload.route_model import Recogniser, Router, Target
from kvload.servers.router.upstream import Upstream


@dataclass(frozen=True)
class Settings:
    """What all policies are made with.

    Attributes:
        servers: how many there are; the first has the full cache.
        share: of the requests to the full cache, 0 to 1.
        seed: decides what is drawn, together with each request's own key.
        router, target, recogniser: what was fitted; None where no file was given.
    """

    servers: int
    share: float = 0.2
    seed: int = 0
    router: Router | None = None
    target: Target = "negative"
    recogniser: Recogniser | None = None


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        asked: what it asks.
        named_task: its task, where the client names it.
        key: the same for the same request, and for later turns of its conversation.
    """

    asked: Asked
    named_task: str | None
    key: str

    @cached_property
    def row(self) -> list[float]:
        """Its features."""
        return features(self.asked)

    def task(self, recogniser: Recogniser | None) -> str | None:
        """Its task: as named, or as it looks."""
        if self.named_task is not None or recogniser is None:
            return self.named_task
        return recogniser.task(self.asked)

    def draw(self, seed: int) -> float:
        """0 to 1, always the same for the same request and seed."""
        return random.Random(f"{seed}/{self.key}").random()


class Policy(ABC):
    """Chooses a server for every request.

    Raises:
        UsageError: what it needs is not there.
    """

    name: str
    needs_router = False
    most_servers: int | None = None

    def __init__(self, settings: Settings) -> None:
        if self.needs_router and settings.router is None:
            raise UsageError(f"the policy '{self.name}' needs a router", where="--router")
        if self.most_servers is not None and settings.servers != self.most_servers:
            raise UsageError(
                f"the policy '{self.name}' chooses between {self.most_servers} servers, not {settings.servers}",
                where="--to",
                hint="name the one with the full cache first, then the compressed one",
            )
        self.settings = settings

    @abstractmethod
    def choose(self, question: Question, servers: Sequence[Upstream]) -> int:
        """The place of the server that is to answer."""
