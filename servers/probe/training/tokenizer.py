"""The probe's tokenizer: every word of its tasks is one token, every digit one token, all other text falls to bytes.

The Hugging Face tokenizer is a byte-level BPE without merges: a piece of text is either a known word or its bytes, so
any text survives encoding and decoding. ``WordEncoder`` does the same in plain Python, fast enough for training data.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from kvload.servers.probe.tasks.generator import TASKS, build_document, generate
from kvload.servers.probe.tasks.texts import PRETOKEN
from kvload.servers.probe.tasks.words import NAMES, NOUNS, PLACES
from kvload.servers.probe.training.smalltalk import SMALLTALK

PAD, BEGIN, END, USER, ASSISTANT, SYSTEM = SPECIALS = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
)
"""Special tokens; their ids are their places in this tuple."""

PAD_ID, BEGIN_ID, END_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID = range(len(SPECIALS))

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The printable stand-in of each byte 0..255, as byte-level BPE writes them (Radford et al. 2019, GPT-2)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(256, 512))
    return [chr(byte if byte in kept else next(shifted)) for byte in range(256)]


def _task_words() -> list[str]:
    """All words with their leading space, if any, that the tasks' texts are made of, sorted."""
    texts = [text for pair in SMALLTALK for text in pair]
    texts += [form for word in (*NOUNS, *NAMES, *PLACES) for form in (word, f" {word}")]
    for task in TASKS:
        rng = Random(f"tokenizer/{task}")
        texts += [build_document(task, rng, 3800).text for _ in range(40)]
        for sample in generate([task], 2048, 40, seed=0):
            texts += [sample.messages[0]["content"], sample.expected]
    pieces = {piece for text in texts for piece in PRETOKEN.findall(text)}
    return sorted(piece for piece in pieces if len(piece) > 1)


@cache
def build_vocabulary() -> dict[str, int]:
    """Token to id: special tokens, the 256 bytes, then the words, a leading space written as in byte-level BPE."""
    alphabet = byte_alphabet()
    words = [word.replace(" ", alphabet[ord(" ")]) for word in _task_words()]
    return {token: index for index, token in enumerate((*SPECIALS, *alphabet, *words))}


class WordEncoder:
    """Encodes texts of the generator like the Hugging Face tokenizer does; special tokens in a text are plain text."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        alphabet = byte_alphabet()
        self._byte_ids = [vocabulary[sign] for sign in alphabet]
        self._ids = {
            token.replace(alphabet[ord(" ")], " "): index
            for token, index in vocabulary.items()
            if token not in SPECIALS and (len(token) > 1 or token.isascii())
        }

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        known = self._ids
        try:
            return [known[piece] for piece in PRETOKEN.findall(text)]
        except KeyError:
            ids: list[int] = []
            for piece in PRETOKEN.findall(text):
                index = known.get(piece)
                ids += [index] if index is not None else [self._byte_ids[byte] for byte in piece.encode()]
            return ids


def tokenizer_files(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Contents of ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json``."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": vocabulary,
        "merges": [],
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PRETOKEN.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    named = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(SPECIALS)],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 4608,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "chat_template": CHAT_TEMPLATE,
            **named,
        },
        "special_tokens_map.json": named,
    }


def write_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    """Write the tokenizer's files into an existing folder."""
    for name, content in tokenizer_files(vocabulary).items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
