"""Text to tokens and back: a model's own tokenizer, or plain numbers for a model that has none."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kvload.errors import UsageError


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer."""

    @property
    def longest_token(self) -> int:
        """Most characters of a prompt that one token can stand for."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens added. Raises ValueError for text it cannot take."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out."""

    def token_text(self, token: int) -> str:
        """One token as it reads by itself, special tokens included."""

    def chat(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """Token ids of a conversation with the opening of the answer. Raises ValueError without a template."""


class NumericTokenizer:
    """For a model without a tokenizer: a token's text is its id with a space before it."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    @property
    def longest_token(self) -> int:
        """A token's digits and the space before it; zeros and spaces beyond that are not counted on."""
        return len(str(self._vocab_size)) + 1

    def encode(self, text: str) -> list[int]:
        """Read decimal token ids."""
        words = text.split()
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError("this model has no tokenizer: give the prompt as token ids")
        return [int(word) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """`` 17 4 2`` for 17, 4, 2."""
        return "".join(f" {token}" for token in ids)

    def token_text(self, token: int) -> str:
        """`` 17`` for 17."""
        return f" {token}"

    def chat(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """Always refused."""
        del messages, options
        raise ValueError("this model has no tokenizer and so no chat template")


class ModelTokenizer:
    """A tokenizer that came with the model.

    Args:
        inner: a ``transformers`` tokenizer.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        backend = getattr(inner, "backend_tokenizer", None)
        self._backend = None if getattr(inner, "clean_up_tokenization_spaces", False) else backend
        # A normaliser may make a text shorter, as by joining a letter and its accent; none makes it a quarter.
        shortens = backend is None or backend.normalizer is not None
        self.longest_token = max(map(len, inner.get_vocab())) * (4 if shortens else 1)
        # What the function itself takes is the server's to say: a template above all, which is a program.
        taken = inspect.signature(inner.apply_chat_template).parameters
        self._reserved = frozenset(taken) - TEMPLATE_DATA - {"kwargs"}

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens the model expects."""
        return list(self._inner(text, add_special_tokens=True).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        if self._backend is not None:
            return str(self._backend.decode(ids, skip_special_tokens=True))
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """The token alone; partial UTF-8 reads as the replacement character."""
        return str(self._inner.decode([token], skip_special_tokens=False))

    def chat(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> list[int]:
        """The model's chat template applied, the answer opened.

        Args:
            options: variables of the template; see ``chat_template_kwargs``.
        """
        reserved = sorted(self._reserved & options.keys())
        if reserved:
            raise ValueError(f"chat_template_kwargs may set variables of the model's template, not {reserved[0]}")
        if not getattr(self._inner, "chat_template", None):
            raise ValueError("this model's tokenizer has no chat template; use /v1/completions")
        try:
            text = self._inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        except Exception as error:  # a template raises whatever its author chose, for messages it does not take
            raise ValueError(f"the model's chat template refuses these messages: {error}") from error
        return list(self._inner(text, add_special_tokens=False).input_ids)


TEMPLATE_DATA = frozenset({"tools", "documents"})
"""Arguments of ``apply_chat_template`` that are data for the template to write out."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


def load_tokenizer(model: str, vocab_size: int) -> Tokenizer:
    """The tokenizer in a model's folder, or a :class:`NumericTokenizer` if the folder has none.

    Raises:
        UsageError: there are tokenizer files, but they cannot be read.
    """
    folder = Path(model)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return NumericTokenizer(vocab_size)
    from transformers import AutoTokenizer

    try:
        return ModelTokenizer(AutoTokenizer.from_pretrained(model))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(f"the tokenizer cannot be loaded: {error}", where=model) from error
