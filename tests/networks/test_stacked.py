"""A stack of networks is so many networks: the same weights, the same training, restart by restart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offmanifold.data.worlds import WORLDS
from offmanifold.networks.stacked import StackedMLP
from offmanifold.studies import toy_vaes


def _generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_each_network_sees_its_own_inputs_through_its_own_weights() -> None:
    stack = StackedMLP((3, 5, 2), _generators(range(4)), torch.float64)
    inputs = torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    together = stack(inputs)
    for i in range(4):
        alone = StackedMLP((3, 5, 2), _generators(range(i, i + 1)), torch.float64)
        torch.testing.assert_close(alone(inputs[i : i + 1])[0], together[i])
        hidden = torch.nn.functional.leaky_relu(inputs[i] @ stack.weights[0][i] + stack.biases[0][i], 0.01)
        torch.testing.assert_close(hidden @ stack.weights[1][i] + stack.biases[1][i], together[i])
        torch.testing.assert_close(stack.one(i, inputs[i]), together[i])


@pytest.mark.parametrize("name", ["VAE", "IWAE"])
@pytest.mark.parametrize("learned", [False, True])
def test_restarts_trained_together_are_those_trained_one_by_one(name: str, learned: bool) -> None:
    world, method = WORLDS["figure-8"], toy_vaes.method_named(name)
    train, held_out, _ = toy_vaes.data(world, 0, (300, 50, 10))
    train, held_out = train.double(), held_out.double()

    def fitted(seeds: range) -> toy_vaes.StackedVAE:
        model = toy_vaes.StackedVAE(2, 1, seeds, world.noise_variance, learned=learned, dtype=torch.float64)
        truth = (world, [seed % 2 == 0 for seed in seeds])
        toy_vaes.fit_stack(model, train, held_out, method, steps=40, seed=0, truth=truth)
        return model

    together = fitted(range(3))
    for seed in range(3):
        alone = fitted(range(seed, seed + 1))
        for one, stacked in zip(alone.state_dict().values(), together.state_dict().values(), strict=True):
            torch.testing.assert_close(one[0], stacked[seed], rtol=0, atol=1e-5)
        # What is told of a restart is its own.
        rows = held_out.numpy()
        np.testing.assert_allclose(
            toy_vaes.log_prob(alone, 0, rows), toy_vaes.log_prob(together, seed, rows), atol=1e-4
        )


def test_the_bound_stays_below_the_likelihood_and_the_best_variance_is_the_errors() -> None:
    world, method = WORLDS["circle"], toy_vaes.method_named("VAE")
    train, held_out, test = toy_vaes.data(world, 0, (500, 200, 200))
    model = toy_vaes.StackedVAE(2, 1, (0, 1), world.noise_variance)
    toy_vaes.fit_stack(model, train, held_out, method, steps=150, seed=0)
    rows = torch.from_numpy(test).float()
    elbo = -toy_vaes.objectives(model, rows, method)
    iwae = -toy_vaes.objectives(model, rows, toy_vaes.method_named("IWAE"))
    for restart in range(2):
        exact = toy_vaes.log_prob(model, restart, test).mean()
        assert elbo[restart] < iwae[restart] < exact + 0.01
        # At the variance of Eq. 5 no other one gives a better reconstruction term.
        best = toy_vaes.best_variance(model, restart, rows)
        mean, std = toy_vaes.posterior(model, restart, test)
        drawn = toy_vaes.decode(model, restart, mean + std * np.random.default_rng(0).standard_normal(mean.shape))
        np.testing.assert_allclose(best, ((test - drawn) ** 2).mean(0), rtol=0.2)
    assert np.isfinite(toy_vaes.samples(model, 0, 10, np.random.default_rng(0))).all()


def test_only_flagged_restarts_begin_at_the_truth() -> None:
    world, method = WORLDS["circle"], toy_vaes.method_named("VAE")
    train, held_out, _ = toy_vaes.data(world, 0, (500, 50, 10))
    model = toy_vaes.StackedVAE(2, 1, (0, 1), world.noise_variance)
    before = [weight.detach().clone() for weight in model.decoder.weights]
    # No joint step of any size: the warm-up alone.
    toy_vaes.fit_stack(model, train, held_out, method, steps=300, seed=0, truth=(world, (True, False)), joint_steps=0)
    for old, new in zip(before, model.decoder.weights, strict=True):
        assert torch.equal(old[1], new[1]) and not torch.equal(old[0], new[0])
    z = np.linspace(-2, 2, 50)
    assert np.abs(toy_vaes.decode(model, 0, z[:, None]) - world.decode(z)).mean() < 0.15


def test_an_encoder_that_learns_from_pairs_finds_far_places_on_the_curve() -> None:
    world, method = WORLDS["spiral-dots"], toy_vaes.method_named("VAE")
    train, held_out, _ = toy_vaes.data(world, 0, (500, 200, 10))
    losses = {}
    for pairs in (False, True):
        model = toy_vaes.StackedVAE(2, 1, (0, 1), world.noise_variance)
        before = [weight.detach().clone() for weight in model.encoder.weights]
        truth = (world, (True, False))
        toy_vaes.fit_stack(model, train, held_out, method, steps=400, seed=0, truth=truth, joint_steps=0, pairs=pairs)
        for old, new in zip(before, model.encoder.weights, strict=True):
            assert torch.equal(old[1], new[1]) and not torch.equal(old[0], new[0])
        losses[pairs] = toy_vaes.objectives(model, held_out, method)[0]
    assert losses[True] < 0.5 * losses[False]
