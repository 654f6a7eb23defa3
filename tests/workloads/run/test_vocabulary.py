"""The size of a vocabulary, asked of servers of which each knows its own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from kvload.address import Address
from kvload.workloads.run.vocabulary import asks_by_token_ids, vocabulary_by_asking
from kvload.workloads.schedule.request import PlannedRequest
from tests.workloads.run.test_dispatch import plan


@contextmanager
def server(
    size: int, *, in_the_body: bool = False, says: str = "Token id 9 is out of vocabulary"
) -> Iterator[tuple[Address, list[int]]]:
    """A server that refuses token ids from ``size`` on, by its status or, as some do, in an answer of status 200."""
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert (body["model"], body["max_tokens"], len(body["prompt"])) == ("m", 1, 4)
            asked.append(body["prompt"][0])
            fits = max(body["prompt"]) < size
            answer = {"choices": [{"text": "x"}]} if fits else {"error": {"message": says}}
            payload = json.dumps(answer).encode()
            self.send_response(200 if fits or in_the_body else 400)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield Address.parse(f"http://127.0.0.1:{made.server_address[1]}"), asked
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def planned(**body: object) -> list[PlannedRequest]:
    (request,) = plan([0.0])
    return [msgspec.structs.replace(request, body=json.dumps({"model": "m", **body}).encode())]


@pytest.mark.parametrize("size", [2, 257, 4096, 29_999])
@pytest.mark.parametrize("in_the_body", [False, True])
def test_the_highest_id_that_is_taken_is_found(size: int, in_the_body: bool) -> None:
    with server(size, in_the_body=in_the_body) as (address, asked):
        assert vocabulary_by_asking(planned(prompt=[1]), address) == size
    assert len(asked) <= 18


def test_a_vocabulary_of_the_usual_size_takes_one_request() -> None:
    with server(32_000) as (address, asked):
        assert vocabulary_by_asking(planned(prompt=[1]), address) is None
    assert asked == [29_999]


def test_a_server_that_takes_no_token_ids_tells_nothing() -> None:
    with server(0) as (address, asked):
        assert vocabulary_by_asking(planned(prompt=[1]), address) is None
    assert len(asked) == 2


def test_nobody_there_tells_nothing() -> None:
    with server(10) as (address, _):
        pass
    assert vocabulary_by_asking(planned(prompt=[1]), address) is None


def test_a_refusal_that_is_not_about_the_ids_tells_nothing() -> None:
    with server(4096, says="the server is overloaded") as (address, asked):
        assert vocabulary_by_asking(planned(prompt=[1]), address) is None
    assert len(asked) == 1


def test_prompts_of_token_ids_are_told_from_texts() -> None:
    assert asks_by_token_ids(planned(prompt=[5, 6]))
    assert not asks_by_token_ids(planned(prompt="five"))
    assert not asks_by_token_ids(planned(messages=[{"role": "user", "content": "five"}]))
    assert not asks_by_token_ids(planned(prompt=[]))
    assert not asks_by_token_ids([])
