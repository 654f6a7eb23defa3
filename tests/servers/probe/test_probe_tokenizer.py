"""The probe's tokenizer as transformers loads it: any text survives, task words and digits are single tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.servers.probe import MODEL_DIR
from kvload.servers.probe.tasks.generator import TASKS, generate
from kvload.servers.probe.tasks.texts import token_count
from kvload.servers.probe.tasks.words import ADJECTIVES, JOBS, NAMES, NOUNS, PLACES
from kvload.servers.probe.training.tokenizer import SPECIALS, WordEncoder, build_vocabulary, tokenizer_files

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MODEL_DIR)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives_and_both_encoders_agree(tokenizer: Any, text: str) -> None:
    if any(special in text for special in SPECIALS):
        return
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert WordEncoder(build_vocabulary()).encode(text) == ids


def test_task_words_are_single_tokens_and_digits_stand_alone(tokenizer: Any) -> None:
    for word in (*NOUNS, *NAMES, *PLACES, *ADJECTIVES, *JOBS):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("4071", add_special_tokens=False)) == list("4071")


@pytest.mark.parametrize("task", TASKS)
def test_prompt_tokens_are_those_of_the_chat_template(tokenizer: Any, task: str) -> None:
    for sample in generate([task], 1024, 3, seed=6):
        ids = tokenizer.apply_chat_template(list(sample.messages), add_generation_prompt=True)["input_ids"]
        assert len(ids) == sample.prompt_tokens
        assert len(tokenizer.encode(sample.expected, add_special_tokens=False)) == token_count(sample.expected)


def test_template_marks_every_role_and_ends_every_message(tokenizer: Any) -> None:
    roles = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")]
    messages = [{"role": role, "content": content} for role, content in roles]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == ("<|begin|><|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|><|user|>v<|end|><|assistant|>")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")


def test_shipped_files_are_what_the_code_writes(tmp_path: Path) -> None:
    import json

    for name, content in tokenizer_files(build_vocabulary()).items():
        assert json.loads((MODEL_DIR / name).read_text(encoding="utf-8")) == content, name
