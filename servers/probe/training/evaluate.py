"""Asks the probe model held-out questions, and makes the model card's table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvload.errors import KvloadError
from kvload.servers.probe import MODEL_DIR
from kvload.servers.probe.tasks.generator import TASKS, ProbeSample, generate

TABLE_START, TABLE_END = "<!-- table:start -->", "<!-- table:end -->"
"""Lines of the model card between which ``--card`` puts the table."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a sample: text, its tokens without the end mark, and whether it ended by itself."""

    sample: ProbeSample
    text: str
    tokens: int
    expected_tokens: int
    ended: bool

    @property
    def exact(self) -> bool:
        """Whether the answer is the expected one, sign for sign."""
        return self.text == self.sample.expected


@dataclass(frozen=True, slots=True)
class Cell:
    """Figures of one task at one context: shares of 1, lengths in tokens."""

    task: str
    context_tokens: int
    questions: int
    exact: float
    ended: float
    mean_tokens: float
    expected_tokens: float
    far_off_length: float


def summarise(answers: Sequence[Answer]) -> Cell:
    """The figures of the answers of one task and context.

    ``far_off_length`` is the share of answers 50 % or more too long or too short.

    Raises ValueError for no answers.
    """
    if not answers:
        raise ValueError("no answers to summarise")
    count = len(answers)
    return Cell(
        task=answers[0].sample.task,
        context_tokens=answers[0].sample.context_tokens,
        questions=count,
        exact=sum(answer.exact for answer in answers) / count,
        ended=sum(answer.ended for answer in answers) / count,
        mean_tokens=sum(answer.tokens for answer in answers) / count,
        expected_tokens=sum(answer.expected_tokens for answer in answers) / count,
        far_off_length=sum(abs(a.tokens - a.expected_tokens) >= 0.5 * a.expected_tokens for a in answers) / count,
    )


class Respondent:
    """A model folder loaded in transformers, answering greedily.

    ``loss`` names a simulated cache loss (see ``lossy.parse_loss``), None a full cache. With a loss, questions are
    asked one by one; otherwise ``batch`` at a time.
    """

    def __init__(self, folder: Path, loss: str | None, device: str, batch: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        extra: dict[str, Any] = {}
        if loss is not None:
            from kvload.servers.probe.training import lossy

            lossy.register()
            extra["attn_implementation"] = lossy.ATTENTION_NAME
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra).to(device)
        if loss is not None:
            lossy.apply_loss(self._model, lossy.parse_loss(loss))
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._batch = batch if loss is None else 1
        self._device = device

    def answer(self, samples: Sequence[ProbeSample]) -> Iterator[Answer]:
        """The answers to the samples, in order."""
        for start in range(0, len(samples), self._batch):
            yield from self._answer_batch(samples[start : start + self._batch])

    def _answer_batch(self, samples: Sequence[ProbeSample]) -> Iterator[Answer]:
        tokenizer = self._tokenizer
        inputs = tokenizer.apply_chat_template(
            [list(sample.messages) for sample in samples],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(self._device)
        cap = max(sample.max_tokens for sample in samples)
        output = self._model.generate(**inputs, max_new_tokens=cap, do_sample=False)
        for sample, ids in zip(samples, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            said = ids[: sample.max_tokens]
            ended = tokenizer.eos_token_id in said
            said = said[: said.index(tokenizer.eos_token_id)] if ended else said
            expected_tokens = len(tokenizer.encode(sample.expected, add_special_tokens=False))
            yield Answer(sample, tokenizer.decode(said), len(said), expected_tokens, ended)


def markdown(cells: Sequence[Cell]) -> str:
    """The table task x context: exact answers, answers ended by themselves, mean and expected length."""
    contexts = sorted({cell.context_tokens for cell in cells})
    lines = [
        "| task | " + " | ".join(f"{context}" for context in contexts) + " | ended | tokens | expected |",
        "|---|" + "---:|" * (len(contexts) + 3),
    ]
    for task in [*dict.fromkeys(cell.task for cell in cells), None]:
        row = [cell for cell in cells if task in (None, cell.task)]
        asked = sum(cell.questions for cell in row)

        def mean(name: str, chosen: Sequence[Cell]) -> float:
            total: float = sum(getattr(c, name) * c.questions for c in chosen)
            return total / sum(c.questions for c in chosen)

        figures = [
            f"{100 * mean('exact', [c for c in row if c.context_tokens == context]):.1f} %" for context in contexts
        ]
        figures += [f"{100 * mean('ended', row):.1f} %", f"{mean('mean_tokens', row):.1f}"]
        figures.append(f"{mean('expected_tokens', row):.1f}")
        name = task or f"all ({asked} questions)"
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def write_card(card: Path, table: str) -> None:
    """Put the table between the marks of the model card. Raises KvloadError if the marks are missing."""
    text = card.read_text(encoding="utf-8")
    before, found, rest = text.partition(TABLE_START)
    _, found_end, after = rest.partition(TABLE_END)
    if not found or not found_end:
        raise KvloadError(f"no lines {TABLE_START} and {TABLE_END} to put the table between", where=str(card))
    card.write_text(f"{before}{TABLE_START}\n{table}\n{TABLE_END}{after}", encoding="utf-8")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def main() -> None:
    """Evaluate by the command line; the table goes to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(description="Ask the probe model held-out questions.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--tasks", type=_list, default=list(TASKS))
    parser.add_argument("--contexts", type=_list, default=["256", "512", "1024", "2048", "4096"])
    parser.add_argument("--per-task", type=int, default=10, help="questions per task and context")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--cache", help="simulated loss: int8, int4, int2, kivi4, kivi2, window512, ...; default none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the cells here")
    parser.add_argument("--card", type=Path, help="also put the table into this model card")
    options = parser.parse_args()
    respondent = Respondent(options.model, options.cache, options.device, options.batch)
    cells = []
    for context in map(int, options.contexts):
        for task in options.tasks:
            begun = time.perf_counter()
            samples = generate([task], context, options.per_task, options.seed)
            cell = summarise(list(respondent.answer(samples)))
            cells.append(cell)
            print(
                f"{context:5d} {task:9s} exact {100 * cell.exact:5.1f} %  ended {100 * cell.ended:5.1f} %  "
                f"tokens {cell.mean_tokens:6.1f} of {cell.expected_tokens:6.1f}  "
                f"50 % off {100 * cell.far_off_length:5.1f} %  {time.perf_counter() - begun:5.1f} s",
                file=sys.stderr,
            )
    table = markdown(cells)
    print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    if options.card:
        write_card(options.card, table)


if __name__ == "__main__":
    main()
