"""A request on its way through a simulated server."""

from dataclasses import dataclass, field

from kvload.servers.embedded.account.base import PagedSequence
from kvload.servers.simulator.prefix import Prefix


@dataclass(eq=False, slots=True)
class SimulatedRequest:
    """A request on its way through a simulated server.

    Attributes:
        number: order of arrival.
        prompt_tokens, output_tokens: its lengths; at least 1 each.
        arrival_s: when it reaches the server.
        cached_tokens: tokens of the prompt that the prefix cache holds when it is first scheduled: they are not
            computed. Found then, where ``prefix`` says by what.
        prefix: what the prompt shares with others, where the server keeps prefixes.
        since: the entry of the log since which it receives a token in every step; None while it does not.
        scheduled_s, first_s, last_s: first scheduled, first token, last token; None before.
        first_beside: other requests that receive a token in the step of its first.
        spans: entries ``first .. last`` of the server's log in which it received tokens, one pair for every stretch
            between preemptions.
        refused: it is longer than the server takes, or than the pool could ever hold.
    """

    number: int
    prompt_tokens: int
    output_tokens: int
    arrival_s: float
    cached_tokens: int = 0
    prefix: Prefix | None = None
    computed: int = 0
    generated: int = 0
    cache: PagedSequence | None = None
    prefill_length: int = 0
    preemptions: int = 0
    scheduled_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    first_beside: int = 0
    since: int | None = None
    refused: bool = False
    spans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return self.prompt_tokens + self.generated

    @property
    def remaining(self) -> int:
        """Tokens that are known but not in the cache."""
        return self.prompt_tokens + self.generated - self.computed

    @property
    def chunk_limit(self) -> int | None:
        """None: only the step's own budget counts."""
        return None

    def give_way(self) -> None:
        """Its pages were taken; everything is computed again."""
        self.preemptions += 1
