"""Worlds with a latent variable: densities, posteriors and samples against brute force and each other."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, norm

from offmanifold.data import worlds
from offmanifold.data.worlds import EMBEDDING, WORLDS, World, embedded, world_named
from offmanifold.measures import kraskov
from offmanifold.probability.grids import midpoints, path_nodes

PLANE = [name for name, world in WORLDS.items() if world.dimension == 2]
LABELLED = [name for name, world in WORLDS.items() if world.label]
# Fewer rows where two integrals are nested.
ROWS = {name: 40 if world.label == "normal" else 300 for name, world in WORLDS.items()}


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- densities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANE)
def test_densities_integrate_to_one_and_samples_follow_them(name: str, rng: np.random.Generator) -> None:
    world = WORLDS[name]
    drawn = world.sample(20_000, rng).x
    margin = 6 * world.noise_variance**0.5
    low, high = drawn.min(0) - margin, drawn.max(0) + margin
    # One point for each deviation of the noise: on a Gaussian the midpoint rule then errs by 10⁻⁸.
    points = int((high - low).max() / world.noise_variance**0.5)
    grid, area = midpoints(((low[0], high[0]), (low[1], high[1])), points)
    density = np.exp(world.log_prob(grid)) * area
    assert density.sum() == pytest.approx(1, abs=1e-5)
    for moment in (lambda x: x, lambda x: x**2, lambda x: (x[:, :1] * x[:, 1:]) ** 2):
        exact, values = density @ moment(grid), moment(drawn)
        assert (np.abs(values.mean(0) - exact) < 4.5 * values.std(0) / 20_000**0.5 + 1e-4).all()


def test_more_nodes_change_nothing(world: World, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = world.sample(ROWS[world.name], rng).x
    found = world.log_prob(x)
    finer = functools.partial(path_nodes, order=32 if world.label != "normal" else 24)
    monkeypatch.setattr(worlds, "path_nodes", lambda *args, panel=2.0: finer(*args, panel=panel))
    other = dataclasses.replace(world)
    assert len(other._nodes[0]) >= 1.5 * len(world._nodes[0])
    np.testing.assert_allclose(other.log_prob(x), found, atol=1e-7)


def test_densities_are_means_over_latents(world: World, rng: np.random.Generator) -> None:
    """p(x) = E p(x | z) over z (and y) of the world's own sampler, by brute force."""
    x, _, _ = world.sample(20, rng)
    _, z, y = world.sample(100_000, rng)
    means = world.decode(z, y)
    squares = ((x[:, None] - means) ** 2).sum(2) / world.noise_variance
    p = np.exp(-0.5 * squares) / (2 * np.pi * world.noise_variance) ** (world.dimension / 2)
    error = p.std(1) / 100_000**0.5
    assert (np.abs(np.exp(world.log_prob(x)) - p.mean(1)) < 4.5 * error).all()


def test_log_likelihood_is_the_noises(world: World, rng: np.random.Generator) -> None:
    x, z, y = world.sample(30, rng)
    expected = norm.logpdf(x, world.decode(z, y), world.noise_variance**0.5).sum(1)
    np.testing.assert_allclose(world.log_likelihood(x, z, y), expected)
    noise = (x - world.decode(z, y)) / world.noise_variance**0.5
    assert noise.std() == pytest.approx(1, abs=0.35)


# --- posteriors ----------------------------------------------------------------------------------------


def test_posteriors_are_normalised_and_obey_bayes(world: World, rng: np.random.Generator) -> None:
    x, _, y = world.sample(10, rng)
    # Spiral Dots' spikes are narrow.
    z = np.linspace(-6, 6, 60_001 if world.name == "spiral-dots" else 3001)
    density = world.posterior(x, z, y)
    np.testing.assert_allclose(density.sum(1) * (z[1] - z[0]), 1, atol=1e-4)
    evidence = world.log_prob(x, y)
    for i in range(10):
        label = None if y is None else y[i]
        joint = world.log_likelihood(np.tile(x[i], (len(z), 1)), z, label) + norm.logpdf(z)
        np.testing.assert_allclose(density[i], np.exp(joint - evidence[i]), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_integrated_out(name: str, rng: np.random.Generator) -> None:
    """p(x) = Σ p(y) p(x | y), and p(z | x) = Σ p(y | x) p(z | x, y)."""
    world = WORLDS[name]
    x, _, _ = world.sample(10, rng)
    z = np.linspace(-5, 5, 501)
    if world.label == "binary":
        labels, prior = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    else:
        labels = np.linspace(-7, 7, 501)
        prior = norm.pdf(labels) * (labels[1] - labels[0])
    joint = prior[:, None] * np.exp([world.log_prob(x, label) for label in labels])
    np.testing.assert_allclose(joint.sum(0), np.exp(world.log_prob(x)), rtol=1e-6)
    shares = joint / joint.sum(0)
    mixed = sum(share[:, None] * world.posterior(x, z, label) for share, label in zip(shares, labels, strict=True))
    found = world.posterior(x, z)
    np.testing.assert_allclose(found, mixed, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.sum(1) * 0.02, 1, atol=1e-4)


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_a_row_is_as_one_for_all(name: str, rng: np.random.Generator) -> None:
    world = WORLDS[name]
    x, _, y = world.sample(6, rng)
    assert y is not None
    found, posterior = world.log_prob(x, y), world.posterior(x, [0.0, 1.0], y)
    for i in range(6):
        assert found[i] == pytest.approx(world.log_prob(x[i : i + 1], y[i])[0])
        np.testing.assert_allclose(posterior[i], world.posterior(x[i : i + 1], [0.0, 1.0], y[i])[0])


# --- decoders ------------------------------------------------------------------------------------------


def test_decoders_are_those_of_the_paper() -> None:
    """P2 Eqs. 33 to 39 at z where Φ and the logistic are known."""
    z = norm.ppf([0.25, 0.5])
    u = np.array([1.05, 1.5]) * np.pi
    eight = np.sqrt(2) * np.cos(u) / (np.sin(u) ** 2 + 1) * np.stack([[0.5, 0.5], np.sin(u)])
    np.testing.assert_allclose(WORLDS["figure-8"].decode(z), eight.T, atol=1e-12)
    np.testing.assert_allclose(WORLDS["circle"].decode(z), [[0, 1], [-1, 0]], atol=1e-12)
    np.testing.assert_allclose(WORLDS["absolute-value"].decode(z), [[0.5, 0.5], [0, 0]], atol=1e-12)
    # u = 1: the middle of the first step, t = 2 (Clusters) or 1 (Spiral Dots); u = 2: a dot between two steps.
    middle = -2 / np.pi * np.log(2 * np.pi - 1)
    np.testing.assert_allclose(WORLDS["clusters"].decode([middle]), [[np.cos(2), np.sin(2)]])
    dot = -2 / np.pi * np.log(np.pi - 1)
    np.testing.assert_allclose(WORLDS["clusters"].decode([dot]), [[np.cos(4), np.sin(4)]], atol=1e-7)
    np.testing.assert_allclose(
        WORLDS["spiral-dots"].decode([-2 / np.pi * np.log(4 * np.pi - 1)]), [[np.cos(1), np.sin(1)]]
    )
    discrete = WORLDS["discrete-semi-circle"].decode(z, [0, 1])
    angles = np.pi * np.array([0.5, 0.125])
    np.testing.assert_allclose(discrete, np.stack([np.cos(angles), np.sin(angles)], 1))
    y = norm.ppf(beta.cdf(0.3, 0.2, 0.2))
    angle = np.pi * (0.3 * 0.5 + 0.7 * 0.25**3)
    continuous = WORLDS["continuous-semi-circle"].decode([z[0]], y)
    np.testing.assert_allclose(continuous, [[np.cos(angle), np.sin(angle)]])


def test_the_simpler_decoder_gives_the_same_law_and_one_mode(rng: np.random.Generator) -> None:
    world = WORLDS["absolute-value"]
    assert world.simpler is not None
    x = world.sample(500, rng).x
    np.testing.assert_allclose(world.simpler.log_prob(x), world.log_prob(x), atol=1e-8)
    z = np.linspace(-3, 3, 601)
    for law, modes in ((world, 2), (world.simpler, 1)):
        density = law.posterior([[0.5, 0.5]], z)[0]
        assert ((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).sum() == modes


# --- what is known in nats -----------------------------------------------------------------------------


@functools.cache
def exact_entropy(name: str) -> float:
    """−E log p(x) of a plane world embedded in five dimensions: two of them, and noise alone in the others."""
    world = WORLDS[name]
    _, triangle = np.linalg.qr(EMBEDDING.T)
    plane = embedded(world, triangle.T)
    side = 6.0 if world.noise_variance > 0.1 else 3.0
    grid, area = midpoints(((-side, side), (-side, side)), 150)
    log_p = plane.log_prob(grid)
    return -float((np.exp(log_p) * log_p).sum() * area) + 1.5 * np.log(2 * np.pi * np.e * world.noise_variance)


@pytest.mark.parametrize(
    ("name", "entropy", "information"), [("figure-8", -0.4296, 2.2558), ("clusters", 4.3013, 1.2302)]
)
def test_entropy_and_information_in_five_dimensions(
    name: str, entropy: float, information: float, rng: np.random.Generator
) -> None:
    """What the −ELBOs of P2's Table 2 are to be compared with; −0.39 and 4.29 there for IWAE, within its intervals."""
    assert exact_entropy(name) == pytest.approx(entropy, abs=5e-5)
    world = WORLDS[f"{name}-5d"]
    noise = 2.5 * np.log(2 * np.pi * np.e * world.noise_variance)
    assert exact_entropy(name) - noise == pytest.approx(information, abs=5e-5)
    found = world.entropy(20_000, rng, level=0.9999)
    assert found.low < entropy < found.high and found.high - found.low < 0.05
    found = world.information(20_000, rng, level=0.9999)
    assert found.low < information < found.high
    # Kraskov's estimate from 2000 rows is biased towards 0, by the more the less smooth z ↦ x is.
    x, z, _ = world.sample(2000, rng)
    assert 0.5 * information < kraskov(x, z) < information
    if name == "figure-8":
        plane = x @ np.linalg.qr(EMBEDDING.T).Q  # what is left out is noise
        assert kraskov(plane, z) == pytest.approx(information, abs=0.1)


def test_entropy_is_minus_the_mean_log_density(world: World, rng: np.random.Generator) -> None:
    n = 5 * ROWS[world.name]
    found = world.entropy(n, np.random.default_rng(1), level=0.9999)
    log_p = world.log_prob(world.sample(n, rng).x)
    assert abs(found.value + log_p.mean()) < 4.5 * log_p.std() / n**0.5 + (found.high - found.low) / 2


# --- use -----------------------------------------------------------------------------------------------


def test_samples_are_reproducible(world: World) -> None:
    one, same, other = (world.sample(50, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.x.shape == (50, world.dimension) and one.z.shape == (50, 1)
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.z, same.z)
    assert not np.array_equal(one.x, other.x)
    if world.label is None:
        assert one.y is None
    else:
        assert one.y is not None and one.y.shape == (50,)
        assert set(one.y) == {0, 1} if world.label == "binary" else abs(one.y.mean()) < 0.6


def test_the_table_is_by_name() -> None:
    assert all(world.name == name for name, world in WORLDS.items())
    assert world_named("circle") is WORLDS["circle"]
    with pytest.raises(ValueError, match=r"name='figure8' is unknown. Did you mean 'figure-8'\?"):
        world_named("figure8")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w["circle"].log_prob(np.zeros((4, 3))), r"x must be of shape \(n, 2\) in circle; got \(4, 3\)"),
        (lambda w: w["circle"].posterior(np.zeros(2)), r"x must be of shape \(n, 2\) in circle; got \(2,\)"),
        (lambda w: w["circle"].log_prob(np.zeros((4, 2)), 1), "y must be None: circle has no labels"),
        (lambda w: w["circle"].decode(np.zeros((4, 2))), r"z must be of shape \(n, 1\) or \(n,\); got \(4, 2\)"),
        (lambda w: w["circle"].log_likelihood(np.zeros((4, 2)), np.zeros(3)), "x and z must be pairs; got 4 and 3"),
        (lambda w: w["circle"].sample(0, np.random.default_rng()), "n must be an integer of at least 1; got 0"),
        (lambda w: w["discrete-semi-circle"].decode([0.0]), "y is missing: discrete-semi-circle"),
        (lambda w: w["discrete-semi-circle"].decode([0.0], [0.5]), "y must hold 0 and 1 alone"),
        (lambda w: w["discrete-semi-circle"].log_prob(np.zeros((4, 2)), [0, 1]), r"y must be .* \(4,\).* got \(2,\)"),
        (lambda w: embedded(w["circle"], np.eye(3)), r"matrix must have 2 rows.* got shape \(3, 3\)"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(WORLDS)


def test_what_is_infinitely_far_is_impossible_and_no_nan(world: World) -> None:
    if world.label:
        pytest.skip("its density is of rows and labels")
    with np.errstate(over="ignore"):
        assert (world.log_prob(np.full((2, world.dimension), 1e200)) == -np.inf).all()
