"""The time of a decoding step of a running server, once all of its requests decode.

    python docs/results/gpu/decode_step.py http://127.0.0.1:8000 --requests 32 --prompt 8000 --answer 64

Sends random prompts at once and prints the median gap between tokens while every request has its first token and none
its last: no prompt is read meanwhile.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
import urllib.request
from itertools import pairwise
from urllib.parse import urlsplit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=8000)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=4000)
    options = parser.parse_args()
    with urllib.request.urlopen(options.url + "/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    source = random.Random(options.requests + options.prompt)
    times: list[list[float]] = [[] for _ in range(options.requests)]

    def ask(index: int) -> None:
        prompt = [source.randint(5, options.vocabulary) for _ in range(options.prompt)]
        times[index] = stream(options.url, model, prompt, options.answer)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(options.requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, last = max(one[0] for one in times), min(one[-1] for one in times)
    gaps = [b - a for one in times for a, b in pairwise(one) if first < a < b <= last]
    if not gaps:
        raise SystemExit("error: no step in which all requests decode; ask for longer answers")
    print(f"{1e3 * statistics.median(gaps):.2f} ms a step, of {len(gaps)} gaps")


def stream(url: str, model: str, prompt: list[int], tokens: int) -> list[float]:
    """When each token of an answer came."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    found: list[float] = []
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:])["choices"]
            found += [time.perf_counter()] * len((choices[0].get("token_ids") or []) if choices else [])
    connection.close()
    return found


if __name__ == "__main__":
    main()
