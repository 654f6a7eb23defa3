"""A real instruct model on the embedded engine, against transformers' own ``generate``."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvload.servers.embedded.bench.decode import running_server
from kvload.servers.embedded.model.packed import can_pack

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

QUESTIONS = [
    "Name three fruits that are red.",
    "A shop sells pens at 3 coins each. What do 7 pens cost? Think step by step.",
    "Write one sentence about the sea.",
    "Translate to French: good morning.",
    "What is the capital of Italy, and which river runs through it?",
    "Schreibe einen kurzen Satz auf Deutsch.",
]
ANSWER = 40


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    """More than are idle wait for each other, in this process and in the server's."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(real_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(real_model)


@pytest.fixture(scope="module")
def theirs(real_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def server(real_model: Path) -> Iterator[str]:
    with running_server(
        ["--served-model-name", "m", "--model", str(real_model), "--dtype", "float32", "--kv-memory", "256MiB"]
    ) as address:
        yield address


def ask(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def version(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}/version", timeout=30) as response:
        found: dict[str, Any] = json.load(response)
    return found


def chat(address: str, question: str, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "max_tokens": ANSWER, "temperature": 0}
    answer = ask(address, "/v1/chat/completions", {**body, "return_token_ids": True, **more})
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def generated(model: Any, prompt: list[int], **more: Any) -> list[int]:
    with torch.inference_mode():
        made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=ANSWER, **more)
    return [int(token) for token in made[0, len(prompt) :]]


def test_what_the_folder_says_is_what_runs(server: str, theirs: Any) -> None:
    said = version(server)
    assert said["recorded"]  # in spite of a padding id above 0
    config = theirs.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert config.hidden_size // config.num_attention_heads == 64
    assert theirs.lm_head.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()
    # Keys and values of 30 layers and 3 heads of 64, in float32.
    assert said["kv_cache_bytes"] / said["kv_cache_size_tokens"] == 30 * 3 * 64 * 2 * 4


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_those_of_generate(question: str, server: str, theirs: Any, tokenizer: Any) -> None:
    choice = chat(server, question)
    prompt = prompt_of(tokenizer, question)
    expected = generated(theirs, prompt)
    assert choice["token_ids"] == expected
    assert choice["finish_reason"] == ("stop" if expected[-1] == theirs.config.eos_token_id else "length")
    assert choice["message"]["content"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_the_prompt_has_the_template_once_and_no_second_beginning(server: str, tokenizer: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "return_token_ids": True}
    answer = ask(server, "/v1/chat/completions", body)
    found = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
    assert found == prompt_of(tokenizer, "hello")
    # The template opens a system message by default, one for the user, one for the answer.
    assert found.count(tokenizer.bos_token_id) == 3
    plain = ask(server, "/tokenize", {"prompt": "hello"})
    assert plain["tokens"] == tokenizer("hello").input_ids


def test_every_end_token_of_generation_config_ends_an_answer(
    real_model: Path, theirs: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """As instruct models ship it: a list in generation_config that config.json does not have."""
    folder = tmp_path / "several-ends"
    folder.mkdir()
    for path in real_model.iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    question = QUESTIONS[2]
    prompt = prompt_of(tokenizer, question)
    whole = generated(theirs, prompt)
    second = whole[len(whole) // 2]
    ends = [theirs.config.eos_token_id, second]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "repetition_penalty": 1.3}))
    with running_server(
        ["--served-model-name", "m", "--model", str(folder), "--dtype", "float32", "--kv-memory", "128MiB"]
    ) as address:
        choice = chat(address, question)
    assert choice["token_ids"] == whole[: whole.index(second) + 1]
    assert choice["finish_reason"] == "stop"
    assert generated(theirs, prompt, eos_token_id=ends) == choice["token_ids"]
    shutil.rmtree(folder)


@pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="the processor has no instructions for bfloat16"
)
def test_in_the_dtype_that_runs_every_token_is_a_likeliest_one(real_model: Path, tokenizer: Any) -> None:
    """In bfloat16 two tokens may tie to within rounding, and which comes first depends on the order of a sum.

    Every token of an answer must be the likeliest in transformers' own bfloat16 pass over the same text, or as near to
    it as two neighbouring numbers of bfloat16 at that size are.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.bfloat16)
    with running_server(["--served-model-name", "m", "--model", str(real_model), "--kv-memory", "128MiB"]) as address:
        said = version(address)
        answers = {question: chat(address, question)["token_ids"] for question in QUESTIONS}
    assert said["dtype"] == "bfloat16"
    assert said["packed_layers"] == 30 * 7 + 1
    exact = 0
    total = 0
    for question, answer in answers.items():
        prompt = prompt_of(tokenizer, question)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        best = logits.max(-1).values
        # Logits of 16 to 32 are apart by 1/8 in bfloat16: two steps, one for either side's rounding.
        assert (best - chosen <= 0.25).all()
        exact += int((best == chosen).sum())
        total += len(answer)
    assert exact >= 0.97 * total
