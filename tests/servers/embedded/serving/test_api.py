"""The HTTP API of a real server process, against ``transformers`` with the same weights."""

import asyncio
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from kvload.servers.embedded.bench.decode import running_server, stream_once
from tests.servers.embedded.tiny_models import tiny_config, tiny_module

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def byte_tokenizer() -> Any:
    """A token is a byte; 256 and 257 are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


class Server:
    """A running server, and the same model in this process."""

    def __init__(self, address: str, reference: Any, tokenizer: Any) -> None:
        self.address = address
        self.reference = reference
        self.tokenizer = tokenizer

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, raw)
        response = connection.getresponse()
        status, data = response.status, response.read()
        connection.close()
        return status, data

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        status, data = self.call("POST", path, body)
        return status, json.loads(data)

    def events(self, path: str, **body: Any) -> list[Any]:
        status, data = self.call("POST", path, {**body, "stream": True})
        assert status == 200, data
        parts = data.decode().split("\n\n")
        assert parts[-2:] == ["data: [DONE]", ""]
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]

    def metric(self, name: str) -> float:
        found = re.search(rf"^kvload:{name} (\S+)$", self.call("GET", "/metrics")[1].decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def expect(self, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        output = self.reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
        )
        return list(output[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("model")
    torch.set_num_threads(1)
    reference = tiny_module(tiny_config("llama", vocab_size=258, eos_token_id=257, bos_token_id=256), "eager")
    reference.generation_config.pad_token_id = 0
    reference.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    arguments = ["--model", str(folder), "--served-model-name", "tiny", "--threads", "1", "--max-num-seqs", "16"]
    with running_server([*arguments, "--chunk-tokens", "24", "--kv-memory", "320KiB"]) as address:
        yield Server(address, reference, tokenizer)


IDS = [10, 20, 30, 40, 50]
GREEDY = {"temperature": 0, "ignore_eos": True}


def test_completion_equals_generate(server: Server) -> None:
    status, answer = server.post("/v1/completions", prompt=IDS, max_tokens=12, return_token_ids=True, **GREEDY)
    [choice] = answer["choices"]
    assert status == 200
    assert choice["token_ids"] == server.expect(IDS, 12)
    assert choice["prompt_token_ids"] == IDS
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert answer["model"] == "tiny"
    assert answer["object"] == "text_completion"


def test_stream_has_one_event_a_token_then_usage(server: Server) -> None:
    options = {"stream_options": {"include_usage": True}, "return_token_ids": True, **GREEDY}
    *chunks, usage = server.events("/v1/completions", prompt=[IDS], max_tokens=9, model="tiny", **options)
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[token] for token in server.expect(IDS, 9)]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 8 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    times = usage["metrics"]
    assert 0 <= times["queue_time_ms"] <= times["time_to_first_token_ms"]
    parts = times["queue_time_ms"] + times["prefill_time_ms"]
    assert times["time_to_first_token_ms"] == pytest.approx(parts, abs=0.01)
    assert times["decode_time_ms"] > 0


def test_streamed_text_equals_whole_text(server: Server) -> None:
    prompt = "grüße, 世界"
    body = {"prompt": prompt, "max_tokens": 25, **GREEDY}
    _, answer = server.post("/v1/completions", **body)
    pieces = [event["choices"][0]["text"] for event in server.events("/v1/completions", **body)]
    ids = server.tokenizer(prompt).input_ids
    expected = server.tokenizer.decode(server.expect(ids, 25), skip_special_tokens=True)
    assert "".join(pieces) == answer["choices"][0]["text"]
    assert [c for c in "".join(pieces) if c.isascii()] == [c for c in expected if c.isascii()]
    assert answer["usage"]["prompt_tokens"] == len(ids) == len(prompt.encode())


def test_chat_uses_the_template(server: Server) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    ids = server.tokenizer("<user>hi<assistant>").input_ids
    body = {"messages": messages, "max_completion_tokens": 5, "return_token_ids": True, **GREEDY}
    status, answer = server.post("/v1/chat/completions", **body)
    assert status == 200
    assert answer["choices"][0]["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == server.expect(ids, 5)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    first, *rest = server.events("/v1/chat/completions", **body)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["object"] == "chat.completion.chunk"
    text = "".join(event["choices"][0]["delta"]["content"] for event in rest)
    assert text == answer["choices"][0]["message"]["content"]


def test_messages_are_counted_under_their_template(server: Server) -> None:
    messages = [{"role": "user", "content": "hi"}]
    status, answer = server.post("/tokenize", messages=messages)
    assert status == 200
    assert answer["tokens"] == server.tokenizer("<user>hi<assistant>").input_ids
    assert answer["count"] == len(answer["tokens"])
    assert server.post("/tokenize", prompt="hi")[1]["count"] == 2
    assert server.post("/tokenize", messages="hi")[0] == 400


def test_echo_gives_the_prompts_log_likelihood(server: Server) -> None:
    prompt = [(37 * i) % 256 for i in range(60)]
    with torch.no_grad():
        logprobs = server.reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = [logprobs[i, token].item() for i, token in enumerate(prompt[1:])]
    body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    _, answer = server.post("/v1/completions", **body)
    found = answer["choices"][0]["logprobs"]
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
    assert len(found["tokens"]) == len(found["top_logprobs"]) == len(found["text_offset"]) == 60
    assert answer["usage"]["completion_tokens"] == 0
    _, answer = server.post("/v1/completions", prompt=prompt, max_tokens=1, prompt_logprobs=0, temperature=0)
    rows = answer["choices"][0]["prompt_logprobs"]
    values = [row[str(token)]["logprob"] for row, token in zip(rows[1:], prompt[1:], strict=True)]
    assert rows[0] is None
    assert values == pytest.approx(expected, abs=1e-3)
    assert rows[1][str(prompt[1])]["rank"] == int((logprobs[0] > logprobs[0, prompt[1]]).sum()) + 1


def test_logprobs_of_generated_tokens(server: Server) -> None:
    _, answer = server.post("/v1/completions", prompt=IDS, max_tokens=3, logprobs=2, **GREEDY)
    tokens = server.expect(IDS, 3)
    with torch.no_grad():
        logprobs = server.reference(torch.tensor([IDS + tokens])).logits[0, 4:7].log_softmax(-1)
    expected = [row[token].item() for row, token in zip(logprobs, tokens, strict=True)]
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-3)
    messages = [{"role": "user", "content": "hi"}]
    _, answer = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=2, logprobs=True, top_logprobs=3, temperature=0
    )
    [first, _] = answer["choices"][0]["logprobs"]["content"]
    assert first["logprob"] == first["top_logprobs"][0]["logprob"]
    assert len(first["top_logprobs"]) == 3


def test_stop_strings_and_stop_tokens(server: Server) -> None:
    tokens = server.expect(IDS, 30)
    text = server.post("/v1/completions", prompt=IDS, max_tokens=30, **GREEDY)[1]["choices"][0]["text"]
    stop = text[2:5]
    _, answer = server.post("/v1/completions", prompt=IDS, max_tokens=30, stop=[stop], **GREEDY)
    [choice] = answer["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    _, answer = server.post(
        "/v1/completions", prompt=IDS, max_tokens=30, stop_token_ids=[tokens[6]], return_token_ids=True, **GREEDY
    )
    assert answer["choices"][0]["token_ids"] == tokens[: tokens.index(tokens[6]) + 1]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_seed_repeats_and_min_tokens_holds(server: Server) -> None:
    body = {"prompt": IDS, "max_tokens": 20, "min_tokens": 20, "temperature": 1.5, "top_p": 0.9, "seed": 7}
    answers = [server.post("/v1/completions", **body, return_token_ids=True)[1] for _ in range(2)]
    first, second = (answer["choices"][0]["token_ids"] for answer in answers)
    assert first == second
    assert len(first) == 20


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b"{"),
        (400, b"[]"),
        (400, {}),
        (400, {"prompt": ""}),
        (400, {"prompt": []}),
        (400, {"prompt": ["a", "b"]}),
        (400, {"prompt": [1, "a"]}),
        (400, {"prompt": [1, -1]}),
        (400, {"prompt": [258]}),
        (400, {"prompt": [True]}),
        (400, {"prompt": "a", "max_tokens": -1}),
        (400, {"prompt": "a", "max_tokens": 1.5}),
        (400, {"prompt": "a", "max_tokens": 100000}),
        (400, {"prompt": [1] * 300}),
        (400, {"prompt": "a", "temperature": -1}),
        (400, {"prompt": "a", "temperature": float("nan")}),
        (400, {"prompt": "a", "top_p": 0}),
        (400, {"prompt": "a", "stop": [1]}),
        (400, {"prompt": "a", "stop": [""]}),
        (400, {"prompt": "a", "stream": "yes"}),
        (400, {"prompt": "a", "n": 2}),
        (400, {"prompt": "a", "min_tokens": 5, "max_tokens": 2}),
        (400, {"prompt": "a", "logprobs": 1000}),
        (404, {"prompt": "a", "model": "other"}),
        (413, b" " * (64 * 2**20 + 1)),
    ],
)
def test_wrong_requests_get_errors_of_openais_shape(server: Server, status: int, body: Any) -> None:
    if status == 413:
        found, data = oversized(server.address, len(body))
    else:
        found, data = server.call("POST", "/v1/completions", body)
    error = json.loads(data)["error"]
    assert found == status
    assert error["code"] == status
    assert error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def oversized(address: str, size: int) -> tuple[int, bytes]:
    """Send a body the server refuses before it has read all of it."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        try:
            for _ in range(0, size, 2**20):
                connection.sendall(b" " * 2**20)
        except ConnectionError:
            pass
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def test_unknown_paths_and_methods(server: Server) -> None:
    assert json.loads(server.call("GET", "/v2")[1])["error"]["code"] == 404
    assert json.loads(server.call("GET", "/v1/completions")[1])["error"]["code"] == 405
    assert server.post("/v1/chat/completions", messages=[])[0] == 400
    assert (
        server.post("/v1/chat/completions", messages=[{"role": "user", "content": [{"type": "image_url"}]}])[0] == 400
    )


def test_what_the_server_says_about_itself(server: Server) -> None:
    assert server.call("GET", "/health")[0] == 200
    [model] = json.loads(server.call("GET", "/v1/models")[1])["data"]
    assert (model["id"], model["max_model_len"], model["vocab_size"]) == ("tiny", 256, 258)
    version = json.loads(server.call("GET", "/version")[1])
    assert (version["engine"], version["method"], version["threads"], version["dtype"]) == (
        "kvload",
        "none",
        1,
        "float32",
    )
    assert server.post("/tokenize", prompt="abc")[1]["tokens"] == server.tokenizer("abc").input_ids
    assert re.search(
        r'^kvload:cache_config_info{model_name="tiny",method="none",block_size="\d+",kv_cache_size_tokens="\d+",'
        r'kv_cache_bytes="\d+"',
        server.call("GET", "/metrics")[1].decode(),
        re.MULTILINE,
    )


def test_metrics_equal_the_sum_of_usages(server: Server) -> None:
    label = '{model_name="tiny"}'
    names = [
        f"prompt_tokens_total{label}",
        f"generation_tokens_total{label}",
        f"time_to_first_token_seconds_count{label}",
    ]
    names += [
        'request_success_total{model_name="tiny",finished_reason="length"}',
        f"inter_token_latency_seconds_count{label}",
    ]
    before = [server.metric(name) for name in names]
    usages = [server.post("/v1/completions", prompt=[1] * n, max_tokens=n, **GREEDY)[1]["usage"] for n in (3, 8, 1)]
    after = [server.metric(name) for name in names]
    prompt, completion = (sum(usage[key] for usage in usages) for key in ("prompt_tokens", "completion_tokens"))
    assert [a - b for a, b in zip(after, before, strict=True)] == [prompt, completion, 3, 3, completion - 3]


def test_a_crowd_in_a_small_pool_is_preempted_and_served_rightly(server: Server) -> None:
    before = server.metric('num_preemptions_total{model_name="tiny"}')
    prompts = [[number + 1, *IDS, number] for number in range(12)]

    def ask(prompt: list[int]) -> Any:
        return server.post("/v1/completions", prompt=prompt, max_tokens=60, return_token_ids=True, **GREEDY)[1]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, prompts))
    assert server.metric('num_preemptions_total{model_name="tiny"}') > before
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["choices"][0]["token_ids"] == server.expect(prompt, 60)
    assert server.metric('kv_cache_allocated_bytes{model_name="tiny"}') == 0


def test_a_client_that_leaves_frees_its_pages(server: Server) -> None:
    aborted = 'request_success_total{model_name="tiny",finished_reason="abort"}'
    before = server.metric(aborted)
    host, _, port = server.address.rpartition(":")
    body = json.dumps({"prompt": IDS, "max_tokens": 250, "stream": True, **GREEDY}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 30
    while server.metric(aborted) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric(aborted) == before + 1
    assert server.metric('num_requests_running{model_name="tiny"}') == 0
    assert server.metric('kv_cache_usage_perc{model_name="tiny"}') == 0


def test_the_benchs_client_counts_tokens(server: Server) -> None:
    body = {"prompt": IDS, "max_tokens": 7, "stream": True, **GREEDY}
    times = asyncio.run(stream_once(server.address, body))
    assert times.tokens == 7
    assert 0 < times.first_s < times.last_s


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "add_generation_prompt", "continue_final_message"])
def test_a_request_brings_no_template_of_its_own(server: Server, name: str) -> None:
    """A template is a program; the server runs its model's alone."""
    messages = [{"role": "user", "content": "hello"}]
    options = {name: "{% for i in range(10 ** 9) %}x{% endfor %}"}
    status, answer = server.post("/v1/chat/completions", messages=messages, max_tokens=1, chat_template_kwargs=options)
    assert status == 400
    assert "chat_template_kwargs" in answer["error"]["message"]
    status, _ = server.post(
        "/v1/chat/completions", messages=messages, max_tokens=1, chat_template_kwargs={"a_variable": 1}
    )
    assert status == 200


def test_prompts_that_cannot_fit_are_refused_by_their_length(server: Server) -> None:
    """Before they are tokenised: a token of this model is never more than 4 characters."""
    for path, body in (
        ("/v1/completions", {"prompt": "a" * 200_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 200_000}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 20_000}),
    ):
        status, answer = server.post(path, max_tokens=1, **body)
        assert status == 400
        assert "characters" in answer["error"]["message"]
    # Counting is not serving: a client may ask how long a text is that it will not send.
    status, answer = server.post("/tokenize", prompt="a" * 20_000)
    assert (status, answer["count"]) == (200, 20_000)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_compressed_as_it_says(server: Server, encoding: str) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=60)
    connection.request("POST", "/v1/completions", b'{"prompt": "a"}', {"Content-Encoding": encoding})
    response = connection.getresponse()
    assert response.status == 400
    assert "not what its headers say" in json.loads(response.read())["error"]["message"]
    connection.close()
