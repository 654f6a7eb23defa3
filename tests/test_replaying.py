"""What a replay refuses before anything is sent."""

import pytest

from kvload.errors import UsageError
from kvload.experiment.replay import check_token_ids
from kvload.records import ServerInfo
from kvload.workloads.schedule.request import PlannedRequest


def planned(path: str) -> list[PlannedRequest]:
    return [
        PlannedRequest(
            index=0, offset_s=0.0, request_id="0", path=path, body=b"{}", prompt_digest="", max_tokens=4, min_tokens=0
        )
    ]


def test_sglang_is_not_asked_for_the_token_ids_of_a_chat() -> None:
    sglang, vllm = (ServerInfo(url="http://127.0.0.1:1", engine=engine) for engine in ("sglang", "vllm"))
    with pytest.raises(UsageError, match="no token ids of a streamed chat"):
        check_token_ids(sglang, planned("/v1/chat/completions"))
    check_token_ids(sglang, planned("/v1/completions"))
    check_token_ids(vllm, planned("/v1/chat/completions"))
