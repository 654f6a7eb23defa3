"""Metrics of all engines in one vocabulary, from recorded expositions, and the scraper against a real server."""

import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.address import Address
from kvload.records import ServerSample
from kvload.servers.engines.base import adapters
from kvload.servers.watch.prometheus import Sample, parse
from kvload.servers.watch.scrape import Scraper, sample_once, to_sample

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_vllm_recorded_under_load() -> None:
    sample = to_sample((FIXTURES / "vllm_metrics.txt").read_text(encoding="utf-8"), None, 1.5)
    assert sample.queue_s == pytest.approx(0.0021523, rel=1e-4)
    assert sample.prefill_s == pytest.approx(32.114159, rel=1e-6)
    assert sample.decode_s == pytest.approx(7.0384587, rel=1e-4)
    assert sample == ServerSample(
        t_s=1.5,
        running=0,
        waiting=0,
        cache_usage=0,
        pool_tokens=10880,
        preemptions=0,
        prefix_queries=8880,
        prefix_hits=5248,
        prompt_tokens=9520,
        generation_tokens=193,
        requests=49,
        queue_s=sample.queue_s,
        prefill_s=sample.prefill_s,
        decode_s=sample.decode_s,
    )


def test_mamba_cache_dtype_and_other_labels_do_not_disturb_the_pool() -> None:
    text = 'vllm:cache_config_info{mamba_cache_dtype="x",num_gpu_blocks="10",block_size="16",cache_dtype="auto"} 1\n'
    assert to_sample(text, "vllm", 0.0).pool_tokens == 160


def test_ranks_are_summed_and_shares_averaged() -> None:
    text = (
        'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.6\n'
        'vllm:request_success_total{finished_reason="stop"} 5\nvllm:request_success_total{finished_reason="length"} 6\n'
    )
    sample = to_sample(text, None, 0.0)
    assert (sample.running, sample.requests) == (7, 11)
    assert sample.cache_usage == pytest.approx(0.4)
    assert sample.waiting is None


def test_sglang_names() -> None:
    text = (
        'sglang:num_running_reqs{model_name="m"} 2\nsglang:num_queue_reqs{model_name="m"} 1\n'
        'sglang:token_usage{model_name="m"} 0.25\nsglang:max_total_num_tokens{model_name="m"} 462441\n'
        'sglang:num_retracted_requests_total{model_name="m"} 3\nsglang:cached_tokens_total{cache_source="device"} 64\n'
        'sglang:prompt_tokens_total{model_name="m"} 128\nsglang:generation_tokens_total{model_name="m"} 77\n'
        'sglang:num_requests_total{model_name="m"} 9\nsglang:queue_time_seconds_sum{model_name="m"} 0.5\n'
        'sglang:per_stage_req_latency_seconds_sum{stage="prefill_forward"} 1.25\n'
        'sglang:per_stage_req_latency_seconds_sum{stage="tokenize"} 9\n'
    )
    assert to_sample(text, None, 0.0) == ServerSample(
        t_s=0.0,
        running=2,
        waiting=1,
        cache_usage=0.25,
        pool_tokens=462441,
        preemptions=3,
        prefix_queries=128,
        prefix_hits=64,
        prompt_tokens=128,
        generation_tokens=77,
        requests=9,
        queue_s=0.5,
        prefill_s=1.25,
    )


def test_sglang_counts_retractions_only_from_the_first_on() -> None:
    gauge, counter = "sglang:num_retracted_reqs 0\n", "sglang:num_retracted_requests_total 2\n"
    assert to_sample(gauge, "sglang", 0.0).preemptions == 0
    assert to_sample(gauge + counter, "sglang", 0.0).preemptions == 2
    assert to_sample(gauge.replace("0", "1"), "sglang", 0.0).preemptions is None
    assert to_sample("sglang:num_running_reqs 1\n", "sglang", 0.0).preemptions is None


def test_the_embedded_engines_own_exposition() -> None:
    pytest.importorskip("torch")
    from kvload.servers.embedded.core.metrics import Metrics

    metrics = Metrics("m", {"kv_cache_size_tokens": "321"}, {"num_requests_running": ("Running.", lambda: 2)})
    metrics.step(prompt_tokens=10, generated=4, gaps_s=[0.1], ttfts_s=[0.2], preemptions=1)
    sample = to_sample(metrics.render(), None, 0.0)
    assert (sample.running, sample.pool_tokens, sample.prompt_tokens, sample.generation_tokens) == (2, 321, 10, 4)
    assert sample.preemptions == 1
    assert sample.prefix_hits is None


def test_metrics_of_nobody_we_know() -> None:
    assert to_sample("process_cpu_seconds_total 1\n", None, 0.0).error is not None
    assert to_sample("vllm:x 1\n", "sglang", 0.0).error is not None


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("a 1", Sample("a", {}, 1.0)),
        ("a{} 1.5e3 1700000000", Sample("a", {}, 1500.0)),
        (r'a{x="q\"\\\n", y="2",} +Inf', Sample("a", {"x": 'q"\\\n', "y": "2"}, math.inf)),
        ('a:b_c{le="0.1"} 7 # {trace="x"} 0.1', Sample("a:b_c", {"le": "0.1"}, 7.0)),
    ],
)
def test_lines(line: str, sample: Sample) -> None:
    assert list(parse(line)) == [sample]


@pytest.mark.parametrize("line", ["", "# HELP a b", "a", "a{", 'a{x="1" 2', "a b", "{} 1", "9a 1", "a{x=1} 2"])
def test_lines_that_are_none_are_passed_over(line: str) -> None:
    assert list(parse(f"{line}\nlast 1")) == [Sample("last", {}, 1.0)]


@given(st.text(max_size=300))
def test_any_text_parses_to_something(text: str) -> None:
    for sample in parse(text):
        assert sample.name


@given(
    st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), st.text(max_size=20), max_size=4),
    st.floats(allow_nan=False),
)
def test_what_a_client_library_writes_is_read_back(labels: dict[str, str], value: float) -> None:
    escaped = {k: v.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for k, v in labels.items()}
    line = "m{" + ",".join(f'{k}="{v}"' for k, v in escaped.items()) + f"}} {value!r}"
    assert list(parse(line)) == [Sample("m", labels, value)]


class Handler(BaseHTTPRequestHandler):
    count = 0

    def do_GET(self) -> None:
        type(self).count += 1
        body = f"vllm:generation_tokens_total {self.count}\n".encode()
        status = 500 if self.count == 3 else 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    Handler.count = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_scraper_samples_at_both_ends_and_keeps_failures(url: str) -> None:
    samples: list[ServerSample] = []
    enough = threading.Event()

    def sink(sample: ServerSample) -> None:
        samples.append(sample)
        if len(samples) >= 5:
            enough.set()

    zero = time.monotonic()
    with Scraper(Address.parse(url), "vllm", 0.05, zero, sink):
        assert len(samples) == 1
        assert enough.wait(20)
    assert [sample.generation_tokens for sample in samples[:2]] == [1, 2]
    assert samples[2].error == "/metrics answered 500"
    assert samples[2].generation_tokens is None
    assert samples[-1].generation_tokens == Handler.count
    times = [sample.t_s for sample in samples]
    assert times == sorted(times)
    assert 0 <= times[0] <= time.monotonic() - zero


def test_a_server_that_is_gone_is_an_error_sample() -> None:
    sample = sample_once(Address.parse("http://127.0.0.1:9"), "vllm", timeout_s=1.0)
    assert sample.error is not None
    assert sample.running is None


def test_every_source_names_a_field() -> None:
    fields = set(ServerSample.__struct_fields__)
    tables = {made.name: made.metrics for made in adapters()}
    assert sorted(tables) == ["embedded", "sglang", "vllm"]
    for table in tables.values():
        assert table is not None
        assert set(table.sources) <= fields


def test_ranks_that_share_a_pool_count_once_and_pools_of_their_own_add_up() -> None:
    # SGLang 0.5.17 over two GPUs: every rank tells the size of the pool, the first one the rest.
    said = [
        'sglang:max_total_num_tokens{moe_ep_rank="0",pp_rank="0",tp_rank="0"} 65536',
        'sglang:max_total_num_tokens{moe_ep_rank="0",pp_rank="0",tp_rank="1"} 65536',
        'sglang:num_running_reqs{moe_ep_rank="0",pp_rank="0",tp_rank="0"} 3',
    ]
    sample = to_sample("\n".join(said) + "\n", "sglang", 0.0)
    assert (sample.pool_tokens, sample.running) == (65536, 3)
    # With --enable-metrics-for-all-schedulers all ranks tell everything, the one that is behind a little less.
    said += ['sglang:num_running_reqs{moe_ep_rank="0",pp_rank="0",tp_rank="1"} 2']
    assert to_sample("\n".join(said) + "\n", "sglang", 0.0).running == 3
    # Data-parallel ranks have pools of their own, each spread over two ranks.
    of_two = [
        f'sglang:max_total_num_tokens{{dp_rank="{rank // 2}",pp_rank="0",tp_rank="{rank}"}} {1000 + rank // 2}'
        for rank in range(4)
    ]
    assert to_sample("\n".join(of_two) + "\n", "sglang", 0.0).pool_tokens == 2001
    usage = [f'sglang:token_usage{{dp_rank="{rank // 2}",tp_rank="{rank}"}} 0.{rank // 2 + 1}' for rank in range(4)]
    assert to_sample("\n".join(usage) + "\n", "sglang", 0.0).cache_usage == pytest.approx(0.15)


VLLM_TWO_ENGINES = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 5.0
vllm:num_requests_running{engine="1",model_name="llama"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="llama"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="llama"} 0.75
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="llama"} 2.0
vllm:num_preemptions_total{engine="1",model_name="llama"} 0.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="llama"} 1000.0
vllm:generation_tokens_total{engine="1",model_name="llama"} 500.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="llama"} 3.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="llama"} 4.0
vllm:request_success_total{engine="1",finished_reason="stop",model_name="llama"} 5.0
vllm:request_success_total{engine="1",finished_reason="length",model_name="llama"} 0.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="8192"%s} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_gpu_blocks="8192"%s} 1.0
"""


def test_vllms_data_parallel_engines_tell_their_tokens_each_and_the_blocks_of_all() -> None:
    """Two engines of 4,096 blocks: the front end adds the blocks up and repeats the sum for each engine."""
    sample = to_sample(VLLM_TWO_ENGINES % ("", ""), None, 0.0)
    assert sample.pool_tokens == 8192 * 16
    told = ',kv_cache_size_tokens="65536"'
    assert to_sample(VLLM_TWO_ENGINES % (told, told), None, 0.0).pool_tokens == 2 * 65536
    assert (sample.running, sample.preemptions, sample.generation_tokens, sample.requests) == (12, 2, 1500, 12)
    assert sample.cache_usage == pytest.approx(0.5)


def test_what_an_engine_was_set_up_with_before_does_not_count_as_a_pool_of_its_own() -> None:
    line = 'vllm:cache_config_info{{block_size="16",engine="{}",num_gpu_blocks="{}",kv_cache_size_tokens="{}"}} {}\n'
    unset = line.format(0, "None", "None", 1.0)
    before, after = line.format(0, 64, 1024, 1.0), line.format(0, 96, 1536, 1.0)
    assert to_sample(unset + before, "vllm", 0.0).pool_tokens == 1024
    assert to_sample(unset + before + after, "vllm", 0.0).pool_tokens == 1536
    assert to_sample(before + line.format(0, 96, 1536, 0.0), "vllm", 0.0).pool_tokens == 1024
    assert to_sample(before + line.format(1, 64, 1024, 1.0), "vllm", 0.0).pool_tokens == 2048


def test_several_engines_behind_a_router_add_up() -> None:
    """A router's own ``/metrics`` labels each engine's samples with its address."""
    text = "".join(
        f'sglang:max_total_num_tokens{{tp_rank="{rank}",worker_addr="http://10.0.0.{host}:30000"}} 65536\n'
        f'sglang:num_running_reqs{{tp_rank="{rank}",worker_addr="http://10.0.0.{host}:30000"}} {host}\n'
        for host in (1, 2)
        for rank in (0, 1)
    )
    sample = to_sample(text, None, 0.0)
    assert (sample.pool_tokens, sample.running) == (131072, 3)


SGLANG = 'engine_type="unified",model_name="m",moe_ep_rank="{tp}",pp_rank="{pp}",tp_rank="{tp}"'


def test_sglangs_pipeline_stages_share_the_pool_they_tell() -> None:
    """Two stages of two ranks: all four are given the least tokens that any of them can hold."""
    ranks = [(tp, pp) for pp in (0, 1) for tp in (0, 1)]
    text = "".join(f"sglang:max_total_num_tokens{{{SGLANG.format(tp=tp, pp=pp)}}} 40000\n" for tp, pp in ranks)
    text += "".join(f"sglang:num_running_reqs{{{SGLANG.format(tp=0, pp=pp)}}} {6 - pp}\n" for pp in (0, 1))
    text += "".join(f"sglang:token_usage{{{SGLANG.format(tp=0, pp=pp)}}} 0.{5 - pp}\n" for pp in (0, 1))
    sample = to_sample(text, None, 0.0)
    assert (sample.pool_tokens, sample.running) == (40000, 6)
    assert sample.cache_usage == pytest.approx(0.5)


def test_sglangs_attention_ranks_of_one_tensor_parallel_group_have_pools_of_their_own() -> None:
    """--enable-dp-attention: four ranks in two groups; the first of each tells how it goes."""
    text = "".join(
        f'sglang:max_total_num_tokens{{{SGLANG.format(tp=tp, pp=0)},dp_rank="{tp // 2}"}} 30000\n' for tp in range(4)
    )
    text += "".join(
        f'sglang:num_running_reqs{{{SGLANG.format(tp=2 * dp, pp=0)},dp_rank="{dp}"}} {dp + 1}\n' for dp in (0, 1)
    )
    sample = to_sample(text, None, 0.0)
    assert (sample.pool_tokens, sample.running) == (60000, 3)


def test_sglangs_priorities_are_parts_of_the_total_that_is_told_with_them() -> None:
    base = SGLANG.format(tp=0, pp=0)
    text = (
        f'sglang:num_running_reqs{{{base},priority=""}} 7\n'
        f'sglang:num_running_reqs{{{base},priority="0"}} 4\nsglang:num_running_reqs{{{base},priority="5"}} 3\n'
        f'sglang:num_queue_reqs{{{base},priority=""}} 2\nsglang:num_queue_reqs{{{base},priority="5"}} 2\n'
        f'sglang:max_total_num_tokens{{{base},priority=""}} 1000\n'
    )
    before = to_sample(text, None, 0.0)
    assert (before.running, before.waiting, before.pool_tokens) == (7, 2, 1000)
    # a priority that is seen for the first time between two scrapes adds nothing
    later = to_sample(text + f'sglang:num_running_reqs{{{base},priority="9"}} 0\n', None, 0.0)
    assert later.running == 7
