"""The shipped model: its size, its shape, its agreement with the training code, and answers to held-out questions."""

import json
from pathlib import Path

import pytest

from kvload.errors import KvloadError
from kvload.servers.probe import MODEL_DIR
from kvload.servers.probe.tasks.generator import generate
from kvload.servers.probe.training import evaluate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def respondent() -> evaluate.Respondent:
    torch.set_num_threads(1)
    return evaluate.Respondent(MODEL_DIR, None, "cpu", 4)


def test_everything_shipped_stays_below_ten_mebibytes() -> None:
    files = [path for path in MODEL_DIR.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20


def test_model_is_a_plain_llama_that_every_method_can_compress() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] in (64, 128)
    assert config["num_hidden_layers"] >= 8
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["max_position_embeddings"] >= 4096 + 512


@pytest.mark.parametrize("task", ["recall", "track", "list", "sum", "chat"])
def test_held_out_questions_are_answered_and_ended(respondent: evaluate.Respondent, task: str) -> None:
    answers = list(respondent.answer(generate([task], 320, 4, seed=99)))
    assert sum(answer.exact for answer in answers) >= 3
    assert all(answer.ended for answer in answers)
    assert all(answer.tokens == answer.expected_tokens for answer in answers if answer.exact)


def test_training_network_computes_what_transformers_computes(tmp_path: Path) -> None:
    from kvload.servers.probe.training.export import agreement, export
    from kvload.servers.probe.training.network import ProbeNetwork, Shape

    network = ProbeNetwork(Shape(hidden=64, layers=2, heads=4, inner=96), seed=3)
    with torch.no_grad():
        for stack in (network.o, network.down):
            stack.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    export(network, tmp_path)
    assert agreement(network, tmp_path) < 1e-4


def test_shipped_keys_have_the_outlier_channels() -> None:
    from safetensors.torch import load_file

    from kvload.servers.probe.training.network import Shape
    from kvload.servers.probe.training.outliers import outlier_pairs

    weights = load_file(MODEL_DIR / "model.safetensors")
    for layer, heads in enumerate(outlier_pairs(Shape())):
        sizes = weights[f"model.layers.{layer}.self_attn.k_proj.weight"].float().view(2, 2, 32, -1).norm(dim=(1, 3))
        for head, pairs in enumerate(heads):
            assert sizes[head, pairs].min() > 3 * sizes[head].median()


def test_a_lost_cache_shows_and_a_mild_loss_does_not() -> None:
    samples = generate(["recite"], 320, 3, seed=98)
    shares = {}
    for loss in ("int8", "int2", "window64"):
        cell = evaluate.summarise(list(evaluate.Respondent(MODEL_DIR, loss, "cpu", 1).answer(samples)))
        shares[loss] = cell.exact
    assert shares["int8"] == 1.0
    assert shares["int2"] == shares["window64"] == 0.0


def test_summary_counts_by_hand() -> None:
    sample = generate(["list"], 256, 1, seed=1)[0]

    def answer(text: str, tokens: int, ended: bool) -> evaluate.Answer:
        return evaluate.Answer(sample, text, tokens, expected_tokens=10, ended=ended)

    cell = evaluate.summarise([answer(sample.expected, 10, True), answer("x", 15, True), answer("y", 14, False)])
    assert (cell.exact, cell.ended, cell.far_off_length) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert cell.mean_tokens == 13


def test_table_goes_between_the_marks_of_the_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("a\n<!-- table:start -->\nold\n<!-- table:end -->\nb\n")
    evaluate.write_card(card, "new")
    assert card.read_text() == "a\n<!-- table:start -->\nnew\n<!-- table:end -->\nb\n"
    card.write_text("nothing")
    with pytest.raises(KvloadError, match="table:start"):
        evaluate.write_card(card, "new")


@pytest.mark.parametrize("text", ["int0", "window4", "float8", "kivi", "int4 ", "window99999"])
def test_unknown_losses_are_refused(text: str) -> None:
    from kvload.servers.probe.training.lossy import parse_loss

    with pytest.raises(KvloadError, match="unknown cache loss"):
        parse_loss(text)


def test_fake_quantisation_errs_by_at_most_half_a_step() -> None:
    from kvload.servers.probe.training.lossy import fake_quantise, parse_loss

    x = torch.randn(1, 2, 320, 64, generator=torch.Generator().manual_seed(5))
    for bits in (2, 4, 8):
        step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / (2**bits - 1)
        assert ((fake_quantise(x, bits, -1) - x).abs() <= step / 2 + 1e-6).all()
    keys, values = parse_loss("kivi2")(x, x)
    assert torch.equal(keys[:, :, 256:], x[:, :, 256:])
    assert torch.equal(values[:, :, 192:], x[:, :, 192:])
    assert len(set(keys[0, 0, :32, 0].tolist())) == 4
    assert len(set(values[0, 0, 0, :32].tolist())) == 4
    keys, _ = parse_loss("window100")(x, x)
    assert torch.equal(keys, torch.cat((x[:, :, :4], x[:, :, -96:]), dim=2))
