"""The pages of a simulated server that shares prefixes: who holds which, and what is left of prompts that are over.

As vLLM keeps them (vllm/v1/core: ``BlockPool``, ``KVCacheManager``): a page whose tokens were scheduled can be found by
any request that begins with the same tokens up to its end; what several running requests found is there once. A request
that ends leaves its full pages behind, its last ones first in the queue of those that are given up when the pool needs
pages; whoever finds one takes it out of the queue. The answers' pages stand in that queue as well, and nobody finds
them. Simpler than there: a stretch is held as a whole by whoever finds its beginning, and a page that two requests
compute at the same time is found in the place of the first alone.
"""

from collections.abc import Sequence

from kvload.servers.embedded.account.base import PagedSequence, StepEntry

Prefix = Sequence[tuple[int, int]]
"""A prompt's beginning in stretches that other prompts have as well: the number of each, and the token of the prompt at
which it ends. Equal numbers mean equal tokens up to there."""


class Stretch:
    """Pages that follow each other and are shared by the same requests.

    Attributes:
        number: of the stretch; None for pages that nobody can find.
        pages: leading ones of it that are in the cache.
        users: running requests that hold them.
    """

    __slots__ = ("number", "pages", "users")

    def __init__(self, number: int | None, pages: int = 0) -> None:
        self.number = number
        self.pages = pages
        self.users = 0


class SharingSequence(PagedSequence):
    """One request's share of the pool.

    Attributes:
        numbers, ends: the stretches of its prompt, and how many of its full pages lie before the end of each.
        place: the first stretch of which not all pages are in the cache or its own.
        full: pages of the prompt that were found or computed so far.
        own: pages that are nobody else's.
        shared: stretches that it holds.
    """

    __slots__ = ("ends", "full", "numbers", "own", "place", "shared")

    def __init__(self, numbers: list[int], ends: list[int]) -> None:
        super().__init__(0, 1)
        self.numbers = numbers
        self.ends = ends
        self.place = self.full = self.own = 0
        self.shared: list[Stretch] = []


class PrefixAccount:
    """The books of a pool in which requests share their prompts' beginnings.

    Args:
        pages: of the pool.
        page_tokens: tokens of a page.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.pages = pages
        self.page_tokens = page_tokens
        self._held = 0
        self._idle = 0
        self._stretches: dict[int, Stretch] = {}
        # In the order in which they are given up. A dictionary, since any of them may be taken out.
        self._queue: dict[Stretch, None] = {}

    @property
    def free_pages(self) -> int:
        """Pages that no running request holds."""
        return self.pages - self._held

    @property
    def pool_tokens(self) -> int:
        """Tokens of a sequence of any length, in whole pages."""
        return self.pages * self.page_tokens

    @property
    def idle_pages(self) -> int:
        """Those of them in which something is left of requests that are over."""
        return self._idle

    def fits(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a request of this size could ever be served with the whole pool to itself."""
        return -(-(prompt_tokens + max_new_tokens) // self.page_tokens) <= self.pages

    def admits(self, prompt_tokens: int) -> bool:
        """Whether the free pages hold a prompt of this length now, with headroom for a first decode step."""
        return -(-(prompt_tokens + 1) // self.page_tokens) <= self.free_pages

    def admits_prefix(self, prompt_tokens: int, prefix: Prefix, length: int) -> bool:
        """The same of a prompt of which pages are found.

        Args:
            prompt_tokens: its length, and what running requests still have to compute.
            prefix: its beginning.
            length: its length.
        """
        numbers, ends = self._in_pages(prefix)
        found, stretches = self._find(numbers, ends, length)
        idle = sum(stretch.pages for stretch in stretches if not stretch.users)
        return -(-(prompt_tokens + 1) // self.page_tokens) - found <= self.free_pages - idle

    def open(self) -> SharingSequence:
        """A new, empty sequence that shares nothing."""
        return SharingSequence([], [])

    def open_prefix(self, prefix: Prefix, length: int) -> SharingSequence:
        """A new sequence that holds what is found of its prompt; ``length`` says how many tokens that is.

        Args:
            prefix: the prompt's beginning.
            length: tokens that are known of it; the last one is always computed.
        """
        numbers, ends = self._in_pages(prefix)
        sequence = SharingSequence(numbers, ends)
        found, stretches = self._find(numbers, ends, length)
        for stretch in stretches:
            self._hold(stretch, sequence)
        sequence.full = sequence.pages = found
        sequence.length = found * self.page_tokens
        while sequence.place < len(ends) and ends[sequence.place] <= found:
            sequence.place += 1
        return sequence

    def close(self, sequence: SharingSequence) -> None:
        """Leave the pages to whoever finds them, or needs them; closing twice is harmless."""
        if sequence.closed:
            return
        sequence.closed = True
        unfilled = min(sequence.own, sequence.pages - sequence.length // self.page_tokens)
        left = sequence.own - unfilled
        self._held -= sequence.own
        if left:
            self._idle += left
            self._queue[Stretch(None, left)] = None
        for stretch in reversed(sequence.shared):
            stretch.users -= 1
            if not stretch.users:
                self._held -= stretch.pages
                self._idle += stretch.pages
                self._queue[stretch] = None
        sequence.own = sequence.pages = 0
        sequence.shared = []

    def reserve(self, sequence: SharingSequence, new_tokens: int) -> bool:
        """Take the pages that the tokens need beyond the room in the last one; full ones of the prompt can be found."""
        slots = sequence.length + new_tokens
        missing = -(-slots // self.page_tokens) - sequence.pages
        if missing > 0:
            if missing > self.free_pages:
                return False
            self._give_up(missing - (self.free_pages - self._idle))
            self._held += missing
            sequence.own += missing
            sequence.pages += missing
        if sequence.place < len(sequence.numbers):
            self._share(sequence, slots // self.page_tokens)
        return True

    def advance(self, entries: Sequence[StepEntry]) -> None:
        """A step was computed: lengths advance."""
        for entry in entries:
            entry.sequence.length += entry.new_tokens

    def _in_pages(self, prefix: Prefix) -> tuple[list[int], list[int]]:
        """The stretches in which full pages end, and how many pages of the prompt end up to the end of each."""
        numbers, ends, last = [], [], 0
        for number, tokens in prefix:
            end = tokens // self.page_tokens
            if end > last:
                numbers.append(number)
                ends.append(end)
                last = end
        return numbers, ends

    def _find(self, numbers: list[int], ends: list[int], length: int) -> tuple[int, list[Stretch]]:
        """Leading pages of a prompt that are in the cache, and the stretches they are of."""
        most = (length - 1) // self.page_tokens
        found, stretches = 0, []
        for number, end in zip(numbers, ends, strict=True):
            stretch = self._stretches.get(number)
            if stretch is None or found >= most:
                break
            stretches.append(stretch)
            if stretch.pages < end - found:
                found += stretch.pages
                break
            found = end
        return min(found, most), stretches

    def _hold(self, stretch: Stretch, sequence: SharingSequence) -> None:
        if not stretch.users and stretch.pages:
            del self._queue[stretch]
            self._idle -= stretch.pages
            self._held += stretch.pages
        stretch.users += 1
        sequence.shared.append(stretch)

    def _share(self, sequence: SharingSequence, full: int) -> None:
        """Let pages of the prompt be found that are full once the step is over."""
        numbers, ends = sequence.numbers, sequence.ends
        while sequence.place < len(numbers) and sequence.full < full:
            place = sequence.place
            stop = min(full, ends[place])
            start = ends[place - 1] if place else 0
            stretch = self._stretches.get(numbers[place])
            if stretch is None:
                stretch = self._stretches[numbers[place]] = Stretch(numbers[place])
            # Pages of it that another request computed in the meantime are there twice; the own ones nobody finds.
            new = stop - max(sequence.full, start + stretch.pages)
            if new > 0 and sequence.full <= start + stretch.pages:
                if not sequence.shared or sequence.shared[-1] is not stretch:
                    self._hold(stretch, sequence)
                stretch.pages += new
                sequence.own -= new
            sequence.full = stop
            if stop == ends[place]:
                sequence.place += 1

    def _give_up(self, pages: int) -> None:
        """Forget so many pages, those first that nobody has used for the longest time."""
        while pages > 0:
            stretch = next(iter(self._queue))
            taken = min(pages, stretch.pages)
            stretch.pages -= taken
            self._idle -= taken
            pages -= taken
            if not stretch.pages:
                del self._queue[stretch]
                if stretch.number is not None:
                    del self._stretches[stretch.number]
