"""The metrics' text, read by an independent small parser."""

import re

from hypothesis import given
from hypothesis import strategies as st

from kvload.servers.embedded.core.metrics import TOKEN_S, Histogram, Metrics
from kvload.servers.embedded.core.sequence import FinishReason, Timings

LINE = re.compile(r'^([a-z0-9_:]+)\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\} (\S+)$')


def parse(text: str) -> dict[tuple[str, str], float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = LINE.match(line)
            assert match, line
            found[match[1], match[2]] = float(match[3])
    return found


@given(values=st.lists(st.floats(0, 20), max_size=30))
def test_buckets_are_cumulative(values: list[float]) -> None:
    histogram = Histogram("x", "Text.", TOKEN_S)
    for value in values:
        histogram.observe(value)
    found = parse("\n".join(histogram.lines('m="n"')))
    for bound in TOKEN_S:
        assert found["kvload:x_bucket", f'm="n",le="{float(bound)}"'] == sum(value <= bound for value in values)
    assert found["kvload:x_bucket", 'm="n",le="+Inf"'] == found["kvload:x_count", 'm="n"'] == len(values)


def test_what_steps_and_ends_add_up_to() -> None:
    metrics = Metrics('a"b\\c', {"method": "none"}, {"num_requests_running": ("Running.", lambda: 3)})
    metrics.step(prompt_tokens=7, generated=2, gaps_s=[0.01], ttfts_s=[0.2], preemptions=1)
    metrics.step(prompt_tokens=0, generated=1, gaps_s=[0.03], ttfts_s=[], preemptions=4)
    metrics.end(FinishReason.STOP, Timings(queue_s=0.1, prefill_s=0.1, decode_s=None, ttft_s=0.2, e2e_s=0.5))
    metrics.end(FinishReason.ABORT, Timings(queue_s=0.1, prefill_s=None, decode_s=None, ttft_s=None, e2e_s=9))
    found = parse(metrics.render())
    label = r'model_name="a\"b\\c"'
    assert found["kvload:num_requests_running", label] == 3
    assert found["kvload:prompt_tokens_total", label] == 7
    assert found["kvload:generation_tokens_total", label] == 3
    assert found["kvload:num_preemptions_total", label] == 4
    assert found["kvload:inter_token_latency_seconds_sum", label] == 0.04
    assert found["kvload:time_to_first_token_seconds_count", label] == 1
    assert found["kvload:e2e_request_latency_seconds_sum", label] == 0.5
    assert found["kvload:request_decode_time_seconds_count", label] == 0
    assert found["kvload:request_success_total", f'{label},finished_reason="abort"'] == 1
    assert found["kvload:cache_config_info", f'{label},method="none"'] == 1
