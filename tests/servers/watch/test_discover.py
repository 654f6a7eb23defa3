"""What servers of all kinds say about themselves, over real sockets."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvload.address import Address
from kvload.errors import ServerError
from kvload.http import request
from kvload.records import ServerInfo
from kvload.servers.watch.discover import server_info, servers_behind

FIXTURES = Path(__file__).parents[1] / "fixtures"
Serve = Callable[[dict[str, object]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that answer fixed bodies by path; 404 elsewhere."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def run(answers: dict[str, object]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path)
                body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(404 if answer is None else answer if isinstance(answer, int) else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield run
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def models(**fields: object) -> dict[str, object]:
    return {"object": "list", "data": [{"id": "m", **fields}]}


def test_vllm(serve: Serve) -> None:
    metrics = (FIXTURES / "vllm_metrics.txt").read_text(encoding="utf-8")
    url = serve({"/v1/models": models(max_model_len=2048), "/metrics": metrics, "/version": {"version": "0.32.0"}})
    assert server_info(Address.parse(f"{url}/v1/")) == ServerInfo(
        url=url,
        engine="vllm",
        engine_version="0.32.0",
        model="m",
        method="none",
        max_model_len=2048,
        pool_tokens=10880,
        prefix_cache="on",
    )


def test_sglang_whose_settings_hold_a_key_that_is_not_kept(serve: Serve) -> None:
    said = {
        "version": "0.5.17",
        "kv_cache_dtype": "fp8_e4m3",
        "max_total_num_tokens": 924882,
        "context_length": 4096,
        "disable_radix_cache": True,
        "api_key": "sesame",
    }
    url = serve({"/v1/models": models(), "/metrics": "sglang:num_running_reqs 0\n", "/server_info": said})
    info = server_info(Address.parse(url))
    assert info == ServerInfo(
        url=url,
        engine="sglang",
        engine_version="0.5.17",
        model="m",
        method="raw:fp8_e4m3",
        max_model_len=4096,
        pool_tokens=924882,
        prefix_cache="off",
    )
    assert "sesame" not in repr(info)


def test_the_embedded_engine(serve: Serve) -> None:
    metrics = 'kvload:cache_config_info{kv_cache_size_tokens="87376",enable_prefix_caching="False",method="int8"} 1\n'
    said = {"version": "0.1.0", "method": "int8", "device": "cpu"}
    url = serve({"/v1/models": models(max_model_len=64), "/metrics": metrics, "/version": said})
    info = server_info(Address.parse(url))
    assert (info.engine, info.method, info.pool_tokens, info.prefix_cache) == ("embedded", "int8", 87376, "off")


def test_a_stranger_that_only_lists_its_model(serve: Serve) -> None:
    url = serve({"/v1/models": models()})
    assert server_info(Address.parse(url)) == ServerInfo(url=url, model="m")


def test_what_is_no_server(serve: Serve) -> None:
    with pytest.raises(ServerError, match="no OpenAI-compatible server"):
        server_info(Address.parse(serve({})))
    with pytest.raises(ServerError, match="lists no model"):
        server_info(Address.parse(serve({"/v1/models": {"data": []}})))
    with pytest.raises(ServerError, match="wants an API key"):
        server_info(Address.parse(serve({"/v1/models": 401})))
    with pytest.raises(ServerError, match="nothing listens there"):
        server_info(Address.parse("http://127.0.0.1:9"), timeout_s=1.0)


def test_answers_are_bounded(serve: Serve) -> None:
    url = serve({"/big": "x" * 1000})
    with pytest.raises(ServerError, match="longer than 10 bytes"):
        request(Address.parse(url), "/big", limit=10)


def test_the_servers_behind_a_router(serve: Serve) -> None:
    behind = [{"url": "http://127.0.0.1:1", "name": "full"}, {"url": "http://127.0.0.1:2", "name": "fp8"}]
    found = servers_behind(Address.parse(serve({"/kvload/servers": behind})))
    assert [(one.name, one.url) for one in found] == [("full", "http://127.0.0.1:1"), ("fp8", "http://127.0.0.1:2")]
    assert servers_behind(Address.parse(serve({}))) == []
    assert servers_behind(Address.parse(serve({"/kvload/servers": {"a": 1}}))) == []


@pytest.mark.parametrize("listed", [[{"name": "no address"}], [{"url": "http://a"}], [{"url": 1, "name": "a"}]])
def test_what_is_no_list_of_servers_is_refused(serve: Serve, listed: list[object]) -> None:
    with pytest.raises(ServerError, match="list of servers"):
        servers_behind(Address.parse(serve({"/kvload/servers": listed})))
