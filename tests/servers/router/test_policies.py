"""Which server a policy chooses, and what a conversation, a sick server and a named task do to it."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from kvload.address import Address
from kvload.errors import UsageError
from kvload.prompt_features import FEATURES, Asked, asked
from kvload.route_model import Figure, Fitted, Recogniser, Router, Skill, Tree
from kvload.servers.router.decide import MOST_SESSIONS, Decider
from kvload.servers.router.policies import POLICIES, make
from kvload.servers.router.policies.base import Policy, Question, Settings
from kvload.servers.router.upstream import Upstream, parse_to

NOTHING = Skill(estimate=None, low=None, high=None)
FITTED = Fitted(
    n=1,
    clusters=1,
    events=0.1,
    floor_events=None,
    skill=NOTHING,
    brier=NOTHING,
    skill_constant=NOTHING,
    auc=None,
    coverage=None,
    censored=0,
    unknown=0,
    discounted=0.0,
    better=False,
    sentence="",
)
LONG = Tree(feature=[0, -1, -1], threshold=[5.0, 0.0, 0.0], left=[1, 0, 0], right=[2, 0, 0], value=[0.0, -1.0, 2.0])
"""Prompts of more than 147 characters are fragile."""


def router(tasks: dict[str, float] | None = None) -> Router:
    """Fitted on as many long prompts as short ones."""
    ranks = sorted(1 / (1 + np.exp(-np.repeat([-1.0, 2.0], [50, 51]))))
    event = Figure(level=0.0, levels=tasks or {}, trees=[LONG])
    return Router(arm="m", baseline="none", event=event, ranks=[float(rank) for rank in ranks], fitted=FITTED)


def servers(count: int = 2) -> list[Upstream]:
    return [Upstream(f"s{place}", Address.parse(f"http://127.0.0.1:{place + 1}")) for place in range(count)]


def questions(count: int, length: int = 100) -> list[Question]:
    return [Question(Asked("x" * length, "x" * length), None, f"key {number}") for number in range(count)]


def to_full(policy: Policy, asked_: list[Question]) -> float:
    return sum(policy.choose(question, servers()) == 0 for question in asked_) / len(asked_)


def test_fragile_requests_go_to_the_full_cache() -> None:
    policy = make("fragile", Settings(2, share=0.5, router=router()))
    assert to_full(policy, questions(50, 400)) == 1.0
    assert to_full(policy, questions(50, 50)) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.2, 0.75, 1.0])
def test_the_share_is_what_was_asked_for(share: float) -> None:
    """Of traffic like that of the fit, half long and half short."""
    policy = make("fragile", Settings(2, share=share, router=router()))
    mixed = [*questions(1000, 400), *questions(1000, 50)]
    assert to_full(policy, mixed) == pytest.approx(share, abs=0.04)
    assert to_full(make("random", Settings(2, share=share)), mixed) == pytest.approx(share, abs=0.04)


def test_a_fixed_share_holds_for_other_traffic_than_the_fits() -> None:
    policy = make("share", Settings(2, share=0.2, router=router()))
    assert to_full(policy, questions(3000, 400)) == pytest.approx(0.2, abs=0.03)
    assert to_full(make("fragile", Settings(2, share=0.2, router=router())), questions(3000, 400)) > 0.3


def test_the_task_policy_looks_at_nothing_but_the_task() -> None:
    policy = make("task", Settings(2, share=0.5, router=router({"easy": -2.0, "hard": 2.0})))
    for length in (50, 400):
        hard = [Question(each.asked, "hard", each.key) for each in questions(50, length)]
        easy = [Question(each.asked, "easy", each.key) for each in questions(50, length)]
        assert to_full(policy, hard) == 1.0
        assert to_full(policy, easy) == 0.0


def test_an_unnamed_task_is_recognised_by_its_words() -> None:
    words = np.full((2, 8), -5.0)
    texts = {"sum": "add these numbers", "poem": "write some verses"}
    from kvload.prompt_features import buckets

    for place, text in enumerate(texts.values()):
        words[place, buckets(Asked(text, text), 8)] = -1.0
    recogniser = Recogniser(
        tasks=list(texts), counts=8, words=words.tolist(), prior=[0.0, 0.0], least=[-4.0, -4.0], accuracy=1.0
    )
    assert [recogniser.task(Asked(text, text)) for text in texts.values()] == list(texts)
    assert Question(Asked(texts["sum"], ""), None, "").task(recogniser) == "sum"
    assert Question(Asked(texts["sum"], ""), "named", "").task(recogniser) == "named"
    assert Question(Asked("", ""), None, "").task(recogniser) is None


def test_the_same_request_is_always_sent_alike() -> None:
    for name in ("random", "fragile"):
        first, second = (make(name, Settings(2, share=0.4, seed=7, router=router())) for _ in range(2))
        assert [first.choose(one, servers()) for one in questions(100)] == [
            second.choose(one, servers()) for one in reversed(questions(100))
        ][::-1]


def test_balancing_policies() -> None:
    three = servers(3)
    turns = make("round-robin", Settings(3))
    assert [turns.choose(questions(1)[0], three) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    three[0].in_flight, three[1].in_flight = 4, 2
    three[2].healthy = False
    assert make("least-loaded", Settings(3)).choose(questions(1)[0], three) == 1
    idle = servers(3)
    idle[1].healthy = False
    least = make("least-loaded", Settings(3))
    assert [least.choose(questions(1)[0], idle) for _ in range(5)] == [0, 2, 0, 2, 0]


@pytest.mark.parametrize("name", ["fragile", "share", "task"])
def test_what_a_policy_needs_is_said(name: str) -> None:
    with pytest.raises(UsageError, match="needs a router"):
        make(name, Settings(2))
    with pytest.raises(UsageError, match="chooses between 2 servers, not 3"):
        make(name, Settings(3, router=router()))


def test_every_policy_is_one_file() -> None:
    assert {make(name, Settings(2, router=router())).name for name in POLICIES} == set(POLICIES)
    with pytest.raises(UsageError, match="no such policy"):
        make("magic", Settings(2))


def chat(*texts: str) -> bytes:
    """A conversation: user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return msgspec.json.encode({"messages": messages, "max_tokens": 8})


def test_later_turns_go_where_the_first_went() -> None:
    decider = Decider(make("round-robin", Settings(3)), servers(3))
    first = [decider.decide(chat(f"question {number}"), {}) for number in range(6)]
    again = [decider.decide(chat(f"question {number}", "answer", "and then?"), {}) for number in range(6)]
    assert first == again == [0, 1, 2, 0, 1, 2]
    assert decider.counters.sticky == 6
    loose = Decider(make("round-robin", Settings(3)), servers(3), sticks=False)
    loose.decide(chat("q"), {})
    assert loose.decide(chat("q", "a", "b"), {}) == 1


def test_a_named_session_stays_where_it_is() -> None:
    decider = Decider(make("round-robin", Settings(2)), servers())
    places = [decider.decide(b'{"prompt": "any"}', {"x-session-id": name}) for name in "abab"]
    assert places == [0, 1, 0, 1]


def test_what_is_remembered_is_bounded() -> None:
    decider = Decider(make("round-robin", Settings(2)), servers())
    for number in range(MOST_SESSIONS + 10):
        decider._remember(str(number), 0)
    assert len(decider._sessions) == MOST_SESSIONS


def test_a_server_that_is_down_is_gone_round() -> None:
    both = servers()
    decider = Decider(make("fragile", Settings(2, share=1.0, router=router())), both)
    both[0].healthy = False
    assert decider.decide(chat("long " * 100), {}) == 1
    assert decider.counters.elsewhere == 1
    both[1].healthy = False
    assert decider.decide(chat("other"), {}) == 0


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[1,2]", b'{"messages": 3}', b'{"prompt": {"a": 1}}', b"[" * 100000]
)
def test_a_body_that_is_no_request_is_left_to_a_server(body: bytes) -> None:
    assert Decider(make("fragile", Settings(2, router=router())), servers()).decide(body, {}) in {0, 1}


def test_a_request_and_its_trace_have_the_same_features() -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    later = [*turns, {"role": "assistant", "content": "long " * 50}, {"role": "user", "content": "two"}]
    assert asked({"messages": later, "max_tokens": 9}) == Asked("be brief\none\ntwo", "two", 3, 1, 9)
    assert asked({"prompt": ["a", "b"]}).text == "a\nb"
    assert len(asked({"prompt": [5, 6, 7]}).text) == 12
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert asked({"messages": [{"role": "user", "content": parts}]}).last == "look"
    assert len(asked({"messages": later}).text) > 0
    assert len(FEATURES) == len(set(FEATURES))


def test_servers_by_name() -> None:
    found = parse_to(["full=http://127.0.0.1:1", "fp8=127.0.0.1:2/v1", "snapkv:budget=9=https://h"])
    assert Counter(one.name for one in found) == {"full": 1, "fp8": 1, "snapkv:budget=9": 1}
    assert found[2].address.url == "https://h"
    for wrong in ([], ["http://127.0.0.1:1"], ["a=http://h", "a=http://i"], ["=http://h"], ["a b\n=http://h"]):
        with pytest.raises(UsageError):
            parse_to(wrong)
