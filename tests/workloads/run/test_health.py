"""When a server counts as dead: never one that has answered a request since it was last asked."""

from pathlib import Path

import pytest

from kvload.workloads.mock.behaviour import MockSettings
from kvload.workloads.mock.process import MockProcess
from kvload.workloads.run.plan import ReplayPlan, Sending
from kvload.workloads.run.replay import Hooks, run_replay
from tests.workloads.run.test_dispatch import plan
from tests.workloads.run.test_replay import new_run, records_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("answers", [True, False])
def test_a_health_page_is_believed_only_where_nothing_is_answered(tmp_path: Path, answers: bool) -> None:
    """Its health page says 503 all the time; four of five requests fail, with time to be asked between, or all."""
    offsets = [0.25 * number for number in range(48)]
    planned = [
        plan(offsets, prompt="p" if answers and number % 5 == 0 else "fault:http_500", tokens=4)[number]
        for number in range(len(offsets))
    ]
    asked = 0

    def sick() -> str:
        nonlocal asked
        asked += 1
        return "/health answers 503"

    with MockProcess(MockSettings(ttft_s=0.01, itl_s=0.002)) as server:
        run = new_run(tmp_path / "run", server.url, len(planned))
        replay = ReplayPlan(planned=planned, address=server.address, sending=Sending(timeout_s=2.0))
        manifest = run_replay(replay, run, Hooks(is_server_dead=sick))
    records = records_of(run)
    assert len(records) == len(planned)
    assert asked > 0
    if answers:
        assert (manifest.ended, manifest.partial, manifest.sent) == ("completed", False, len(planned))
    else:
        assert manifest.partial
        assert "server died: /health answers 503" in (manifest.ended or "")
        assert {record.cause for record in records.values() if record.status == "unsent"} == {"server_died"}
