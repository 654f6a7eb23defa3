"""The probe's questions: the same for the same seed, and each answer found again by a reader of the text alone."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.errors import KvloadError
from kvload.servers.probe.tasks.generator import TASKS, ProbeSample, generate

COUNT = 6


def split(sample: ProbeSample) -> tuple[list[str], str]:
    """Lines of the document, and the question."""
    text = sample.messages[0]["content"]
    _, document, question = text.split("\n\n")
    return document.split("\n"), question


def matched(pattern: str, text: str) -> re.Match[str]:
    found = re.fullmatch(pattern, text)
    assert found is not None, text
    return found


def begun(pattern: str, text: str) -> re.Match[str]:
    found = re.match(pattern, text)
    assert found is not None, text
    return found


def solve_recall(lines: list[str], question: str) -> str:
    name = matched(r"What is the code of the (\w+ \w+)\? Answer with the code only\.", question)[1]
    (code,) = [m[1] for line in lines if (m := re.fullmatch(rf"The code of the {name} is (\d{{4}})\.", line))]
    return code


def solve_many(lines: list[str], question: str) -> str:
    names = re.findall(r"the (\w+ \w+)(?=[,?])", question.split("codes of", 1)[1].split(" Answer", maxsplit=1)[0])
    return ", ".join(
        solve_recall(lines, f"What is the code of the {name}? Answer with the code only.") for name in names
    )


def solve_distract(lines: list[str], question: str) -> str:
    who, thing = matched(r"Where did (\w+) put the (\w+ \w+)\? Answer with one word\.", question).groups()
    (place,) = [
        line.rsplit(" ", 1)[1].rstrip(".") for line in lines if line.startswith(f"{who} put the {thing} in the ")
    ]
    return place


def solve_track(lines: list[str], question: str) -> str:
    stops = [begun(r"Start at the (\w+) and", question)[1]]
    while not stops[-1].isdigit():
        found = [
            m[1]
            for line in lines
            if (m := re.fullmatch(rf"The {stops[-1]} (?:leads to the (\w+)|holds the number \d+)\.", line))
        ]
        assert len(found) == 1
        stops.append(
            found[0] or next(matched(r".*?(\d+).*", x)[1] for x in lines if x.startswith(f"The {stops[-1]} holds"))
        )
    return ", ".join(stops)


def solve_recite(lines: list[str], question: str) -> str:
    label = matched(r"Repeat all words of the (\w+) box in order\.", question)[1]
    (words,) = [line.split("holds: ")[1][:-1] for line in lines if line.startswith(f"The {label} box holds: ")]
    return words


def things(lines: list[str], question: str) -> list[str]:
    quality = begun(r"(?:Which|How many) (\w+) things", question)[1]
    return [m[1] for line in lines if (m := re.fullmatch(rf"The {quality} (\w+) is in the \w+\.", line))]


def solve_list(lines: list[str], question: str) -> str:
    return ", ".join(things(lines, question))


def solve_count(lines: list[str], question: str) -> str:
    found = things(lines, question)
    return ", ".join(f"{n + 1} {thing}" for n, thing in enumerate(found)) + f". Total: {len(found)}"


def solve_sum(lines: list[str], question: str) -> str:
    who = begun(r"How many coins did (\w+) spend", question)[1]
    bought = [m.groups() for x in lines if (m := re.fullmatch(rf"{who} bought the (\w+) for (\d) coins\.", x))]
    coins = [int(price) for _, price in bought]
    steps = [f"{thing} {price} = {sum(coins[: n + 1])}" for n, (thing, price) in enumerate(bought)]
    return f"{', '.join(steps)}. Total: {sum(coins)}"


def solve_nth(lines: list[str], question: str) -> str:
    ordinal, who, place = begun(r"What is the (\w+) thing that (\w+) keeps in the (\w+)\?", question).groups()
    (shelf,) = [
        line.split(": ")[1][:-1].split(", ") for line in lines if line.startswith(f"{who} keeps in the {place}:")
    ]
    return shelf[{"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1}[ordinal]]


def solve_chat(lines: list[str], question: str) -> str:
    reader, who = matched(r"Please write a short letter to (\w+) that introduces (\w+)\.", question).groups()

    def fact(beginning: str) -> str:
        (line,) = [line for line in lines if line.startswith(f"{who} {beginning} ")]
        return line[:-1].rsplit(" ", 1)[1]

    return (
        f"Dear {reader}, I want you to meet {who}. {who} lives near the {fact('lives near the')} and works as a "
        f"{fact('works as a')}. If you bring a present, it should be {fact('likes the color')}, because {who} likes "
        f"that color. You will see the {fact('always carries a')} that {who} always carries. Please also greet "
        f"{fact('is a friend of')}, a friend of {who}. Best wishes!"
    )


@pytest.mark.parametrize("context", [256, 1024, 4096])
@pytest.mark.parametrize("task", TASKS)
def test_a_reader_of_the_text_finds_the_answer(task: str, context: int) -> None:
    solve = globals()[f"solve_{task}"]
    for sample in generate([task], context, COUNT, seed=31):
        assert solve(*split(sample)) == sample.expected


def test_the_same_seed_gives_the_same_questions_whatever_the_count() -> None:
    few, many = generate(TASKS, 512, 10, seed=4), generate(TASKS, 512, 25, seed=4)
    assert many[:10] == few
    assert [s.expected for s in generate(TASKS, 512, 10, seed=5)] != [s.expected for s in few]
    assert len({sample.id for sample in many}) == 25
    assert [sample.task for sample in few] == list(TASKS)


def test_questions_of_a_seed_never_change() -> None:
    expected = [sample.expected for sample in generate(["recall", "track", "nth"], 256, 3, seed=0)]
    assert expected == GOLDEN


@settings(max_examples=40, deadline=None)
@given(task=st.sampled_from(TASKS), context=st.integers(192, 4096), seed=st.integers(0, 2**40))
def test_prompts_fill_the_context_and_answers_stay_below_the_cap(task: str, context: int, seed: int) -> None:
    (sample,) = generate([task], context, 1, seed)
    assert context - max(80, context // 8) <= sample.prompt_tokens <= context == sample.context_tokens
    assert len(sample.expected.split()) < sample.max_tokens <= 512
    assert sample.scorer in {"exact", "items", "rouge_l", "numeric"}
    assert sample.depth is None or 0 <= sample.depth <= 1


def test_depths_are_spread_over_the_document() -> None:
    depths = [sample.depth for sample in generate(["distract"], 2048, 5, seed=1)]
    assert depths == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.02)


def test_long_answers_reach_two_hundred_words() -> None:
    assert max(len(sample.expected.split()) for sample in generate(["recite"], 4096, 20, seed=2)) >= 200


@pytest.mark.parametrize(
    ("tasks", "context", "count", "seed", "named"),
    [
        (["recall", "poetry"], 512, 1, 0, "poetry"),
        ([], 512, 1, 0, "choose from"),
        (["recall"], 100, 1, 0, "100 tokens"),
        (["recall"], 5000, 1, 0, "5000 tokens"),
        (["recall"], 512, 1, -1, "seed -1"),
        (["recall"], 512, -2, 1, "count -2"),
    ],
)
def test_impossible_wishes_are_named(tasks: list[str], context: int, count: int, seed: int, named: str) -> None:
    with pytest.raises(KvloadError, match=named):
        generate(tasks, context, count, seed)


GOLDEN = ["9061", "bucket, box, leaf, corn, towel, feather, 224", "stamp"]
