"""The probe's training data and optimizer: batches by seed, weights on answers only, orthogonal updates."""

import numpy as np
import pytest

from kvload.servers.probe.training.data import batches, make_batch
from kvload.servers.probe.training.tokenizer import ASSISTANT_ID, END_ID, PAD_ID, USER_ID, WordEncoder, build_vocabulary
from kvload.servers.probe.training.train import Recipe, parse

torch = pytest.importorskip("torch")


def test_weights_lie_on_answers_and_their_end_only() -> None:
    batch = make_batch(1, 0, 12, 576, WordEncoder(build_vocabulary()))
    for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
        answering = False
        for token, weight in zip(tokens, weights, strict=True):
            assert (weight > 0) == answering
            if token == ASSISTANT_ID:
                answering = True
            elif token == END_ID:
                answering = False
        assert tokens[1] == USER_ID
        assert (weights[tokens == PAD_ID] == 0).all()


def test_batches_depend_on_seed_and_step_alone() -> None:
    encoder = WordEncoder(build_vocabulary())
    made = list(batches(5, [(3, 288), (2, 576)], workers=1))
    for step, (rows, length) in enumerate([(3, 288), (2, 576)]):
        again = make_batch(5, step, rows, length, encoder)
        np.testing.assert_array_equal(made[step].tokens, again.tokens)
        np.testing.assert_array_equal(made[step].weights, again.weights)
    assert not np.array_equal(made[0].tokens, make_batch(6, 0, 3, 288, encoder).tokens)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    from kvload.servers.probe.training.muon import orthogonalise

    rng = torch.Generator().manual_seed(2)
    for shape in ((3, 64, 32), (2, 32, 64)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape, generator=rng)).float())
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_curriculum_grows_and_rates_fall() -> None:
    from pathlib import Path

    from kvload.servers.probe.training.trainer import rate_factor, row_lengths, rows_of

    recipe = Recipe(Path())
    lengths = row_lengths(recipe, 2000)
    assert set(lengths[:200]) == {144}
    assert max(lengths[:1000]) < 4608 == max(lengths)
    assert all(rows_of(recipe, length) * length in (recipe.tokens, recipe.tokens // 4) for length in set(lengths))
    factors = [rate_factor(step, 2000) for step in range(2000)]
    assert factors[0] == pytest.approx(0.01)
    assert max(factors) == 1.0
    assert factors[700:] == sorted(factors[700:], reverse=True)
    assert 0 < factors[-1] < 0.001


def test_a_step_of_training_lowers_the_loss_of_its_batch() -> None:
    from kvload.servers.probe.training.network import ProbeNetwork, Shape
    from kvload.servers.probe.training.step import TrainingStep

    network = ProbeNetwork(Shape(hidden=64, layers=2, heads=2, kv_heads=1, inner=64), 1, torch.float32)
    step = TrainingStep(network, 0.02, 0.004, torch.device("cpu"), compiled=False, graphs=False)
    step.prepare([(4, 144)])
    before = [parameter.clone() for parameter in network.parameters()]
    batch = make_batch(1, 0, 4, 144, WordEncoder(build_vocabulary()))
    tokens, weights = torch.from_numpy(batch.tokens), torch.from_numpy(batch.weights)
    step(tokens, weights)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    step.set_rate(1.0)
    losses = [float(step(tokens, weights)) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_command_line_gives_the_recipe() -> None:
    recipe = parse(["--out", "x", "--steps", "7", "--matrix-rate", "0.5", "--no-graphs"])
    assert (recipe.steps, recipe.matrix_rate, recipe.graphs, recipe.compiled) == (7, 0.5, False, True)
