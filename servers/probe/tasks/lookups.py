"""Documents of single facts: codes, hiding places, paths and people."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from kvload.servers.probe.tasks.texts import Turn, Wish, nearest, number, pick, weave
from kvload.servers.probe.tasks.words import ADJECTIVES, COLORS, JOBS, NAMES, NOUNS, PLACES


def _sparse_count(rng: Random, full: int) -> int:
    """How many facts a document of room for ``full`` holds: full, thinned out, or a handful."""
    kind = rng.random()
    if kind < 0.4:
        return full
    if kind < 0.7:
        return max(1, int(full * (0.1 + 0.6 * rng.random())))
    return 1 + int(rng.random() * min(8, full))


class CodesDocument:
    """Four-digit codes of things named by quality and noun; tasks ``recall`` (one code) and ``many`` (two to eight)."""

    def __init__(self, rng: Random, budget: int) -> None:
        count = _sparse_count(rng, max(1, budget // 14))
        if rng.random() < 0.5:
            qualities, nouns = ADJECTIVES, NOUNS
        else:
            side = max(3, int((1.5 * count) ** 0.5) + 1)
            qualities = tuple(rng.sample(ADJECTIVES, min(side, len(ADJECTIVES))))
            nouns = tuple(rng.sample(NOUNS, min(len(NOUNS), 2 * count // len(qualities) + 2)))
        keys = rng.sample(range(len(qualities) * len(nouns)), min(count, len(qualities) * len(nouns)))
        facts = []
        for key in keys:
            name = f"{qualities[key % len(qualities)]} {nouns[key // len(qualities)]}"
            code = number(rng, 4)
            facts.append((f"The code of the {name} is {code}.", (name, code)))
        self.text, self.facts = weave(rng, facts, budget)

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        if wish.task == "recall":
            (name, code), place = nearest(rng, self.facts, wish.depth)
            question = f"What is the code of the {name}? Answer with the code only."
            return Turn("recall", question, code, "exact", place) if wish.limit >= 4 else None
        count = min(2 + int(rng.random() * 7), len(self.facts), wish.limit // 6)
        if count < 2:
            return None
        chosen = [fact for fact, _ in rng.sample(self.facts, count)]
        names = ", ".join(f"the {name}" for name, _ in chosen)
        question = f"What are the codes of {names}? Answer with the codes only, in this order."
        return Turn("many", question, ", ".join(code for _, code in chosen), "items", None)


class PlacesDocument:
    """Who put which thing where, with many near misses; task ``distract``."""

    def __init__(self, rng: Random, budget: int) -> None:
        count = max(2, budget // 10)
        side = max(2, int((1.6 * count) ** (1 / 3)) + 1)
        names = rng.sample(NAMES, min(side, len(NAMES)))
        qualities = rng.sample(ADJECTIVES, min(side, len(ADJECTIVES)))
        nouns = rng.sample(NOUNS, side)
        triples = [(who, what, noun) for who in names for what in qualities for noun in nouns]
        facts = []
        for who, what, noun in rng.sample(triples, min(count, len(triples))):
            place = pick(rng, PLACES)
            facts.append((f"{who} put the {what} {noun} in the {place}.", (who, f"{what} {noun}", place)))
        self.text, self.facts = weave(rng, facts, budget)

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        (who, thing, place), at = nearest(rng, self.facts, wish.depth)
        question = f"Where did {who} put the {thing}? Answer with one word."
        return Turn("distract", question, place, "exact", at) if wish.limit >= 1 else None


class PathsDocument:
    """Chains of things that lead to one another and end at a number; task ``track`` (two to six hops)."""

    def __init__(self, rng: Random, budget: int) -> None:
        stops = rng.sample(NOUNS, max(3, min(len(NOUNS), int(budget // 8.6))))
        facts: list[tuple[str, tuple[str, str]]] = []
        self.next: dict[str, str] = {}
        room = budget
        while len(stops) >= 2:
            length = min(2 + int(rng.random() * 5), len(stops))
            room -= 8 * (length - 1) + 11
            if room < 0 and self.next:
                break
            chain = [stops.pop() for _ in range(length)]
            chain.append(number(rng, 3))
            for here, there in pairwise(chain):
                self.next[here] = there
                ending = f"holds the number {there}" if there == chain[-1] else f"leads to the {there}"
                facts.append((f"The {here} {ending}.", (here, there)))
        self.text, kept = weave(rng, facts, budget)
        targets = set(self.next.values())
        self.starts = [(here, at) for (here, _), at in kept if here not in targets]
        self._kept = {here for (here, _), _ in kept}

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        start, at = nearest(rng, self.starts, wish.depth)
        stops = [start]
        while stops[-1] in self.next:
            stops.append(self.next[stops[-1]])
        if 2 * len(stops) + 3 > wish.limit or not self._kept.issuperset(stops[:-1]):
            return None
        question = f"Start at the {start} and follow the path to its end. Name every stop and then the number."
        return Turn("track", question, ", ".join(stops), "exact", at)


class PeopleDocument:
    """Five facts each on some people, scattered; task ``chat``: a short letter that introduces one of them."""

    def __init__(self, rng: Random, budget: int) -> None:
        count = max(1, min(len(NAMES) - 4, _sparse_count(rng, max(1, budget // 46))))
        facts: list[tuple[str, tuple[str, int]]] = []
        self.people: dict[str, tuple[str, str, str, str, str]] = {}
        for who in rng.sample(NAMES, count):
            home, job, color = pick(rng, PLACES), pick(rng, JOBS), pick(rng, COLORS)
            pet, friend = pick(rng, NOUNS), pick(rng, NAMES)
            while friend == who:
                friend = pick(rng, NAMES)
            self.people[who] = (home, job, color, pet, friend)
            sentences = (
                f"{who} lives near the {home}.",
                f"{who} works as a {job}.",
                f"{who} likes the color {color}.",
                f"{who} always carries a {pet}.",
                f"{who} is a friend of {friend}.",
            )
            facts += [(sentence, (who, index)) for index, sentence in enumerate(sentences)]
        self.text, kept = weave(rng, facts, budget)
        told: dict[str, int] = {}
        for (who, _), _ in kept:
            told[who] = told.get(who, 0) + 1
        self.known = [who for who, number_told in told.items() if number_told == 5]

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        if not self.known or wish.limit < 60:
            return None
        who, reader = pick(rng, self.known), pick(rng, NAMES)
        home, job, color, pet, friend = self.people[who]
        question = f"Please write a short letter to {reader} that introduces {who}."
        answer = (
            f"Dear {reader}, I want you to meet {who}. {who} lives near the {home} and works as a {job}. "
            f"If you bring a present, it should be {color}, because {who} likes that color. "
            f"You will see the {pet} that {who} always carries. "
            f"Please also greet {friend}, a friend of {who}. Best wishes!"
        )
        return Turn("chat", question, answer, "rouge_l", None)
