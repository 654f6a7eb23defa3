"""Documents whose answers are series: boxes to recite, things to list, purchases to add, shelves to count along."""

from __future__ import annotations

from random import Random

from kvload.servers.probe.tasks.texts import Turn, Wish, nearest, pick, weave
from kvload.servers.probe.tasks.words import ADJECTIVES, NAMES, NOUNS, ORDINALS, PLACES

LONGEST_BOX = 230
"""Words of the longest box, so of the longest answer of the ``recite`` task."""


class BoxesDocument:
    """Boxes full of words; task ``recite``: repeat one box word for word."""

    def __init__(self, rng: Random, budget: int) -> None:
        labels = rng.sample(ADJECTIVES, len(ADJECTIVES))
        self.boxes: list[tuple[str, list[str]]] = []
        lines = []
        left = budget
        low = max(4, budget // len(labels))
        high = max(low + 1, min(LONGEST_BOX, budget // 2))
        size = low + int((high - low) * rng.random())
        while labels and left >= low + 6:
            words = rng.sample(NOUNS, max(4, min(LONGEST_BOX, left - 6, int(size * (0.7 + 0.6 * rng.random())))))
            label = labels.pop()
            self.boxes.append((label, words))
            lines.append(f"The {label} box holds: {' '.join(words)}.")
            left -= len(words) + 7
        self.text = "\n".join(lines)

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        last = max(1, len(self.boxes) - 1)
        fits = [(box, at / last) for at, box in enumerate(self.boxes) if len(box[1]) <= wish.limit]
        if not fits:
            return None
        (label, words), at = nearest(rng, fits, wish.depth)
        return Turn("recite", f"Repeat all words of the {label} box in order.", " ".join(words), "rouge_l", at)


class ThingsDocument:
    """Things, each with a place and a quality; tasks ``list`` and ``count``: all things of one quality."""

    def __init__(self, rng: Random, budget: int) -> None:
        room = max(1, min(len(NOUNS), budget // 10))
        nouns = rng.sample(NOUNS, room if rng.random() < 0.7 else max(1, int(room * rng.random())))
        groups = max(1, min(len(ADJECTIVES), round(len(nouns) / (2 + 38 * rng.random() ** 2))))
        self.qualities = rng.sample(ADJECTIVES, groups)
        facts = []
        for noun in nouns:
            quality = pick(rng, self.qualities)
            facts.append((f"The {quality} {noun} is in the {pick(rng, PLACES)}.", (noun, quality)))
        self.text, kept = weave(rng, facts, budget)
        self.groups: dict[str, list[str]] = {}
        for (noun, quality), _ in kept:
            self.groups.setdefault(quality, []).append(noun)

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        cost = 2 if wish.task == "list" else 4
        fits = [
            quality
            for quality, nouns in self.groups.items()
            if cost * len(nouns) + 6 <= wish.limit and len(nouns) < 100
        ]
        if not fits:
            return None
        quality = pick(rng, fits)
        nouns = self.groups[quality]
        if wish.task == "list":
            question = f"Which {quality} things are there? List them all in order, separated by commas."
            return Turn("list", question, ", ".join(nouns), "items", None)
        counted = ", ".join(f"{at} {noun}" for at, noun in enumerate(nouns, 1))
        question = f"How many {quality} things are there? Count them one by one, then give the total."
        return Turn("count", question, f"{counted}. Total: {len(nouns)}", "numeric", None)


class PurchasesDocument:
    """Who bought what for how much; task ``sum``: add what one buyer spent with every step written."""

    def __init__(self, rng: Random, budget: int) -> None:
        room = max(1, min(len(NOUNS), budget // 10))
        buyers = rng.sample(NAMES, max(1, min(len(NAMES), round(room / (2 + 10 * rng.random())))))
        facts = []
        for noun in rng.sample(NOUNS, room):
            who, coins = pick(rng, buyers), 1 + int(rng.random() * 9)
            facts.append((f"{who} bought the {noun} for {coins} coins.", (who, noun, coins)))
        self.text, kept = weave(rng, facts, budget)
        self.bought: dict[str, list[tuple[str, int]]] = {}
        for (who, noun, coins), _ in kept:
            self.bought.setdefault(who, []).append((noun, coins))

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        fits = [who for who, paid in self.bought.items() if 8 * len(paid) + 6 <= wish.limit]
        if not fits:
            return None
        who = pick(rng, fits)
        total = 0
        steps = []
        for noun, coins in self.bought[who]:
            total += coins
            steps.append(f"{noun} {coins} = {total}")
        question = f"How many coins did {who} spend in all? Add the purchases one by one, then give the total."
        return Turn("sum", question, f"{', '.join(steps)}. Total: {total}", "numeric", None)


class ShelvesDocument:
    """People's shelves of five to eight things; task ``nth``: the first, second, ... or last thing of one shelf."""

    def __init__(self, rng: Random, budget: int) -> None:
        facts = []
        for key in rng.sample(range(len(NAMES) * len(PLACES)), max(1, budget // 18)):
            who, place = NAMES[key % len(NAMES)], PLACES[key // len(NAMES)]
            things = rng.sample(NOUNS, 5 + int(rng.random() * 4))
            facts.append((f"{who} keeps in the {place}: {', '.join(things)}.", (who, place, things)))
        self.text, self.shelves = weave(rng, facts, budget)

    def ask(self, rng: Random, wish: Wish) -> Turn | None:
        if wish.limit < 1 or not self.shelves:
            return None
        (who, place, things), at = nearest(rng, self.shelves, wish.depth)
        ordinal = pick(rng, ORDINALS)
        answer = things[-1 if ordinal == "last" else ORDINALS.index(ordinal)]
        question = f"What is the {ordinal} thing that {who} keeps in the {place}? Answer with one word."
        return Turn("nth", question, answer, "exact", at)
