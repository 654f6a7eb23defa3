"""The longest answer a request may have."""

from typing import Any

import pytest
import torch

from kvload.servers.embedded.cache.api import CacheGeometry
from kvload.servers.embedded.core.tokenizer import NumericTokenizer
from kvload.servers.embedded.serving.api import Service, _settle_max_tokens
from kvload.servers.embedded.serving.protocol import RequestError, parse_request
from tests.servers.embedded.reference_cache import ReferenceCache


def settle(prompt: int, **body: Any) -> int:
    """What a server with 100 positions and room for 80 tokens makes of a request."""
    cache = ReferenceCache(CacheGeometry(1, 1, 1, 1, torch.float32, torch.device("cpu")), total=20, page=4)
    unused: Any = None
    service = Service(unused, cache, NumericTokenizer(9), unused, "m", "m", 9, 100, {}, 0)
    return _settle_max_tokens(service, parse_request({"prompt": [1], **body}, chat=False, model="m"), prompt)


def test_the_rest_of_the_context_unless_told() -> None:
    assert settle(30, max_tokens=7) == 7
    assert settle(30, max_completion_tokens=9) == 9
    assert settle(30, max_tokens=0) == 0


@pytest.mark.parametrize(
    ("status", "prompt", "body"),
    [
        (413, 30, {}),
        (413, 60, {"max_tokens": 30}),
        (400, 60, {"max_tokens": 41}),
        (400, 101, {}),
        (400, 100, {}),
        (400, 95, {"min_tokens": 6}),
    ],
)
def test_requests_that_do_not_fit(status: int, prompt: int, body: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        settle(prompt, **body)
    assert raised.value.status == status
