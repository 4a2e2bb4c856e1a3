"""Chains against laws that are known in closed form."""

from __future__ import annotations

import dataclasses
import math
import weakref

import pytest
import torch
from scipy.special import ive
from torch import Tensor, nn

from offmanifold.detectors.normalized_autoencoder import NormalizedAutoencoder
from offmanifold.sampling import chain, langevin, metropolis
from offmanifold.sampling.chain import Kernel, Space, State, run
from offmanifold.sampling.replay import Replay
from offmanifold.sampling.starts import FromData, OnManifold, Persistent

CHAINS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_draws(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def quadratic(scale: Tensor) -> chain.Energy:
    """E whose exp(−E) is a Gaussian with these standard deviations."""
    return lambda x: 0.5 * (x / scale).square().sum(1)


def close_to_variance(found: Tensor, expected: Tensor, n: int, deviations: float = 4.5) -> None:
    """A sample variance of n Gaussian draws has a relative standard deviation of √(2/n)."""
    assert ((found / expected - 1).abs() < deviations * math.sqrt(2 / n)).all(), (found, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_unadjusted_chains_have_the_known_biased_variance(temperature: float) -> None:
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    kernel = Kernel(0.1, temperature=temperature)
    # Started in the biased law, they stay in it exactly.
    variance = temperature * scale**2 / (1 - 0.1 / (2 * temperature * scale**2))
    start = normal_draws(CHAINS, 3) * variance.sqrt()
    state, info = run(langevin.step, generator(), start, quadratic(scale), kernel, 60)
    close_to_variance(state.position.var(0), variance, CHAINS)
    assert (state.position.mean(0).abs() < 4.5 * (variance / CHAINS).sqrt()).all()
    assert info.accepted.eq(1).all()
    # And the bias is no rounding error: the unbiased variance is refused for the narrow direction.
    with pytest.raises(AssertionError):
        close_to_variance(state.position.var(0)[:1], (temperature * scale**2)[:1], CHAINS)


def test_another_noise_is_another_temperature() -> None:
    """σ² ≠ 2λ samples the temperature T σ²/(2λ), which is what P3's image chains do."""
    scale = torch.ones(2, dtype=torch.float64)
    step_size, noise = 0.01, 0.05
    state, _ = run(
        langevin.step, generator(), torch.zeros(CHAINS, 2, dtype=torch.float64), quadratic(scale),
        Kernel(step_size, noise), 600,
    )  # fmt: skip
    expected = noise**2 / (2 * step_size) / (1 - step_size / 2)
    close_to_variance(state.position.var(0), torch.full((2,), expected, dtype=torch.float64), CHAINS)


@pytest.mark.parametrize(
    ("step_size", "noise", "temperature", "clip"),
    [(0.3, None, 1.0, None), (0.3, None, 0.3, None), (0.1, 0.9, 1.7, None), (0.5, 0.6, 1.0, 0.5)],
)
def test_adjusted_chains_have_no_bias(
    step_size: float, noise: float | None, temperature: float, clip: float | None
) -> None:
    """For any T, λ and σ, clipped gradients included; the published code is right for T = 1, σ² = 2λ alone."""
    scale = torch.tensor([0.7, 1.5], dtype=torch.float64)
    variance = temperature * scale**2
    start = normal_draws(CHAINS, 2) * variance.sqrt()
    kernel = Kernel(step_size, noise, temperature, clip=clip)
    state, info = run(metropolis.step, generator(), start, quadratic(scale), kernel, 40)
    close_to_variance(state.position.var(0), variance, CHAINS)
    assert 0.1 < info.accepted.mean() < 0.99
    # Started elsewhere, they come to the same law.
    state, _ = run(metropolis.step, generator(1), torch.full_like(start, 2.0), quadratic(scale), kernel, 400)
    close_to_variance(state.position.var(0), variance, CHAINS)


def test_detailed_balance() -> None:
    """The flow between two halves of the line is the same both ways, also far from the Gaussian case."""

    def energy(x: Tensor) -> Tensor:
        return (x.square() - 1).square().sum(1) + 0.5 * x.sum(1)

    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    density = torch.exp(-energy(grid[:, None]) / 0.7)
    cumulative = (density / density.sum()).cumsum(0)
    uniform = torch.rand(200_000, generator=generator(2), dtype=torch.float64)
    start = grid[torch.searchsorted(cumulative, uniform)][:, None]
    state, _ = metropolis.step(generator(), State(start), energy, Kernel(0.15, 0.6, 0.7))
    for edge in (-0.5, 0.3, 1.0):
        up = ((start < edge) & (state.position >= edge)).sum().item()
        down = ((start >= edge) & (state.position < edge)).sum().item()
        assert min(up, down) > 1000
        assert abs(up - down) < 4.5 * math.sqrt(up + down)


def test_two_modes_get_their_masses() -> None:
    centres, weights = torch.tensor([-1.5, 1.5], dtype=torch.float64), torch.tensor([0.8, 0.2], dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return -torch.logsumexp(weights.log() - 0.5 * ((x - centres) / 0.6).square(), 1)

    start = torch.full((4_000, 1), 1.5, dtype=torch.float64)  # all in the lesser mode
    state, _ = run(metropolis.step, generator(), start, energy, Kernel(0.4), 1500)
    share = (state.position < 0).double().mean().item()
    exact = 0.8 * 0.5 * (1 + math.erf(1.5 / 0.6 / math.sqrt(2))) + 0.2 * 0.5 * (1 - math.erf(1.5 / 0.6 / math.sqrt(2)))
    assert abs(share - exact) < 4.5 * math.sqrt(exact * (1 - exact) / 4_000)


@pytest.mark.parametrize("concentration", [0.0, 2.0, 10.0])
def test_on_the_sphere_chains_sample_von_mises_and_fisher(concentration: float) -> None:
    """Mean A = I_{d/2}(κ)/I_{d/2−1}(κ), second moment 1 − (d − 1) A/κ along the pole; from a point off the sphere."""
    d = 5
    start = torch.zeros(CHAINS, d, dtype=torch.float64)
    start[:, 1] = 3.0
    kernel = Kernel(0.002, space=Space(sphere=True))
    state, _ = run(langevin.step, generator(), start, lambda z: -concentration * z[:, 0], kernel, 700)
    torch.testing.assert_close(state.position.norm(dim=1), torch.ones(CHAINS, dtype=torch.float64))
    expected = ive(d / 2, concentration) / ive(d / 2 - 1, concentration) if concentration else 0.0
    found = state.position.mean(0)
    assert abs(found[0].item() - expected) < 0.01
    assert found[1:].abs().max() < 0.01
    second = 1 - (d - 1) * expected / concentration if concentration else 1 / d
    assert abs(state.position[:, 0].square().mean().item() - second) < 0.01


def test_bounds_refuse_or_clamp() -> None:
    flat = lambda x: 0 * x.sum(1)  # noqa: E731
    start = torch.rand(CHAINS, 1, generator=generator(1), dtype=torch.float64)
    kernel = Kernel(0.05, space=Space(0.0, 1.0, "reject"))
    for step in (langevin.step, metropolis.step):
        state, info = run(step, generator(), start, flat, kernel, 50)
        assert state.position.min() >= 0 and state.position.max() <= 1
        assert abs(state.position.var().item() * 12 - 1) < 0.05  # uniform on [0, 1] stays uniform
        assert 0.5 < info.accepted.mean() < 0.95
    outside = torch.full((5, 1), 3.0, dtype=torch.float64)
    state, _ = run(metropolis.step, generator(), outside, flat, kernel, 50)
    assert (state.position < 1).any() and state.position.max() <= 1
    state, info = run(metropolis.step, generator(), State(outside), flat, kernel, 50)
    assert info.accepted.eq(0).all()  # what entering is for
    clamped = dataclasses.replace(kernel, space=Space(0.0, 1.0))
    state, _ = run(langevin.step, generator(), start, flat, clamped, 50)
    assert (state.position == 1).any() and state.position.max() <= 1
    with pytest.raises(ValueError, match="clamped bounds"):
        metropolis.step(generator(), State(start), flat, clamped)
    with pytest.raises(ValueError, match="the sphere"):
        metropolis.step(generator(), State(start), flat, Kernel(0.1, space=Space(sphere=True)))


def test_an_overflowing_energy_is_never_accepted() -> None:
    def energy(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 1, torch.full_like(x[:, 0], torch.inf), x[:, 0].square())

    start = torch.zeros(1000, 1, dtype=torch.float64)
    state, _ = run(metropolis.step, generator(), start, energy, Kernel(0.5), 50)
    assert torch.isfinite(state.position).all() and state.position.max() <= 1


def test_annealing_and_clipping() -> None:
    kernel = Kernel(10.0, 0.05, anneal=True, clip=0.01)
    assert [kernel.deviation(t) for t in (0, 1, 4)] == [0.05, 0.025, 0.01]
    torch.testing.assert_close(kernel.drift(torch.tensor([[-5.0, 0.002]])), torch.tensor([[0.1, -0.02]]))
    # ∇E is clipped, not ∇E/T.
    warm = dataclasses.replace(kernel, temperature=0.5)
    torch.testing.assert_close(warm.drift(torch.tensor([[-5.0, 0.008]])), torch.tensor([[0.2, -0.16]]))
    for step in (langevin.step, metropolis.step):  # which accepts all where all are alike
        state, info = run(step, generator(), torch.zeros(500, 3), lambda x: 0 * x.sum(1), kernel, 3)
        variance = 0.05**2 * (1 + 1 / 4 + 1 / 9)
        close_to_variance(state.position.var(), torch.tensor(variance), 1500)
        assert info.drift.eq(0).all() and info.noise.gt(0).all()


class Counting:
    """An energy that counts its calls and has a weight of its own."""

    def __init__(self) -> None:
        self.calls = 0
        self.weight = nn.Parameter(torch.tensor(2.0))

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.weight * x.square()).sum(1)


def test_one_gradient_a_step_and_none_for_weights() -> None:
    energy = Counting()
    run(langevin.step, generator(), torch.zeros(4, 2), energy, Kernel(0.1), 7)
    assert energy.calls == 7
    energy.calls = 0
    state, _ = run(metropolis.step, generator(), torch.zeros(4, 2), energy, Kernel(0.1), 7)
    assert energy.calls == 8  # the start's, then one a proposal
    assert energy.weight.grad is None
    assert not state.position.requires_grad


@pytest.mark.parametrize("step", [langevin.step, metropolis.step])
def test_a_chain_goes_on_bit_for_bit(step: chain.Step) -> None:
    energy, kernel = quadratic(torch.ones(3, dtype=torch.float64)), Kernel(0.2, 0.5, anneal=True)
    drawn = generator(5)
    state = State(normal_draws(50, 3))
    for _ in range(4):
        state, _ = step(drawn, state, energy, kernel)
    saved, where = drawn.get_state(), state
    for _ in range(4):
        state, _ = step(drawn, state, energy, kernel)
    other = torch.Generator()
    other.set_state(saved)
    # Energy and gradient are computed again from the position alone: nothing else needs saving.
    again = State(where.position.clone(), step=where.step)
    for _ in range(4):
        again, _ = step(other, again, energy, kernel)
    assert torch.equal(state.position, again.position)
    # And `run` goes on from the state that it returned.
    drawn = generator(5)
    half, _ = run(step, drawn, normal_draws(50, 3), energy, kernel, 4)
    whole, _ = run(step, drawn, half, energy, kernel, 4)
    assert whole.step == 8 and torch.equal(whole.position, state.position)


@pytest.mark.parametrize("step", [langevin.step, metropolis.step])
def test_memory_does_not_grow_with_a_chains_length(step: chain.Step) -> None:
    """What the backward passes keep, at most at one time."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def peak(steps: int) -> int:
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()
        most = 0

        def pack(tensor: Tensor) -> Kept:
            nonlocal most
            kept = Kept(tensor)
            alive.add(kept)
            most = max(most, len(alive))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            state, _ = run(step, generator(), torch.ones(5, 2), Counting(), Kernel(0.1), steps)
        assert state.position.grad_fn is None
        return most

    assert 0 < peak(2) == peak(40)


def test_the_linear_nae_is_a_gaussian() -> None:
    """With x̂ = W x and E = ‖x − x̂‖²/D, exp(−E/T) is N(0, Σ), Σ⁻¹ = 2 (I − W)ᵀ(I − W)/(D T) (P3, methods)."""
    d, k, temperature = 3, 2, 0.2
    encoder, decoder = nn.Linear(d, k, bias=False), nn.Linear(k, d, bias=False)
    model = NormalizedAutoencoder(
        encoder, decoder, latent="euclidean", sigmoid=False, kind="squared", temperature=temperature
    ).double()
    with torch.no_grad():
        for layer in (encoder, decoder):
            layer.weight.copy_(0.5 * torch.randn(layer.weight.shape, generator=generator(3), dtype=torch.float64))
        residual = torch.eye(d, dtype=torch.float64) - decoder.weight @ encoder.weight
    covariance = torch.linalg.inv(2 * residual.T @ residual / (d * temperature))
    start = normal_draws(CHAINS, d)
    kernel = Kernel(1.0, temperature=model.temperature)
    size = metropolis.suggest_step_size(generator(), start, model.energy, kernel)
    kernel = Kernel(size, temperature=model.temperature)
    state, info = run(metropolis.step, generator(), start, model.energy, kernel, 300)
    assert 0.4 < info.accepted.mean() < 0.8
    found = torch.cov(state.position.T)
    error = torch.sqrt((covariance.diag()[:, None] * covariance.diag() + covariance**2) / CHAINS)
    assert ((found - covariance).abs() < 4.5 * error).all()


# --- replay and starts ---------------------------------------------------------------------------------


def test_the_ring_keeps_the_newest_and_draws_them_all() -> None:
    ring = Replay(6, (1,), torch.device("cpu"))
    fresh = torch.full((500, 1), -1.0)
    positions, ages = ring.draw(generator(), fresh, restart=0.0)
    assert positions.eq(-1).all() and ages.eq(0).all()  # an empty ring gives fresh starts
    ring.push(torch.arange(4.0)[:, None], torch.ones(4))
    positions, _ = ring.draw(generator(), fresh, restart=0.0)
    assert set(positions.flatten().tolist()) == {0, 1, 2, 3}
    ring.push(torch.arange(4.0, 8.0)[:, None], torch.full((4,), 2.0))
    positions, ages = ring.draw(generator(), fresh, restart=0.0)
    assert set(positions.flatten().tolist()) == {2, 3, 4, 5, 6, 7}
    assert ages[positions.flatten() >= 4].eq(2).all()
    positions, ages = ring.draw(generator(), torch.full((20_000, 1), -1.0), restart=0.25)
    assert abs(positions.eq(-1).double().mean().item() - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 20_000)
    assert ages[positions.flatten() == -1].eq(0).all()
    for wrong in (torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 1, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"positions must be \(n, 1\) of torch.float32; got"):
            ring.push(wrong, torch.zeros(4))
        with pytest.raises(ValueError, match="fresh must be"):
            ring.draw(generator(), wrong, restart=0.0)
    # Chains that there are not yet are fresh.
    part = Replay(10, (1,), torch.device("cpu"))
    part.put_back(torch.arange(3.0)[:, None], torch.full((3,), 4.0))
    begun, ages = part.going_on(torch.full((5, 1), 7.0))
    assert begun.flatten().tolist() == [0, 1, 2, 7, 7] and ages.tolist() == [4, 4, 4, 0, 0]
    exact = Replay(6, (1,), torch.device("cpu"), torch.float64)
    exact.push(torch.full((2, 1), 1 / 3, dtype=torch.float64), torch.zeros(2))
    assert exact.draw(generator(), torch.zeros(4, 1, dtype=torch.float64), 0.0)[0].eq(1 / 3).all()
    with pytest.raises(ValueError, match=r"ages must be \(4,\) of .*, one a position; got \(3,\)"):
        ring.push(torch.zeros(4, 1), torch.zeros(3))
    for more in (lambda: ring.push(torch.zeros(7, 1), torch.zeros(7)), lambda: ring.going_on(torch.zeros(7, 1))):
        with pytest.raises(ValueError, match="7 positions do not fit into a replay buffer of 6"):
            more()


def test_starts() -> None:
    rows = torch.rand(8, 2, generator=generator())
    begun, _ = FromData().begin(generator(), rows)
    assert begun is rows

    persistent = Persistent(Replay(20, (2,), torch.device("cpu")), lambda g, x: torch.zeros_like(x), restart=0.0)
    begun, metrics = persistent.begin(generator(), rows)
    assert begun.eq(0).all() and metrics["replay_age"] == 0
    for age in range(1, 6):  # without restarts every chain goes on by itself, also where the ring begins anew
        persistent.end(rows + age)
        begun, metrics = persistent.begin(generator(), rows)
        assert torch.equal(begun, rows + age) and metrics["replay_age"] == age
    # A smaller batch goes on with some; the others wait.
    persistent.begin(generator(), rows[:2])
    persistent.end(rows[:2] + 9)
    begun, _ = persistent.begin(generator(), rows)
    assert torch.equal(begun, torch.cat([rows[:2] + 9, rows[2:] + 5]))
    drawn = Persistent(Replay(20, (2,), torch.device("cpu")), persistent.fresh, restart=1e-6)
    for end in range(3):
        drawn.begin(generator(), rows)
        drawn.end(rows + end)
    begun, metrics = drawn.begin(generator(), rows)
    assert not torch.equal(begun, rows + 2) and metrics["replay_age"] < 3
    assert all(any(torch.equal(b, end) for end in drawn.replay.tensors["positions"]) for b in begun)

    # H(z) = E(dec(z)) = ‖2z − 1‖² has its minimum at z = ½, where a chain with little noise must go.
    start = OnManifold(
        lambda z: 2 * z,
        lambda x: (x - 1).square().sum(1),
        Kernel(0.1, 1e-3),
        50,
        lambda g, rows: torch.randn(rows.shape, generator=g),
        Replay(100, (2,), torch.device("cpu")),
    )
    begun, metrics = start.begin(generator(), rows)
    assert (begun - 1).abs().max() < 0.02
    assert start.replay is not None and start.replay.tensors["pushed"] == 8
    # What is remembered is where the chains on z ended.
    assert torch.equal(start.decode(start.replay.tensors["positions"][:8]), begun)
    assert {"replay_age", "latent_drift", "latent_noise"} == set(metrics)
    # And there the next ones begin, a step older.
    again = OnManifold(start.decode, start.energy, start.kernel, 0, start.fresh, start.replay, restart=0.0)
    for age in (1, 2):
        begun, metrics = again.begin(generator(age), rows)
        assert all(any(torch.equal(b, 2 * z) for z in start.replay.tensors["positions"][:8]) for b in begun)
        assert age <= 2 and 1 <= metrics["replay_age"] <= age
    assert start.replay.tensors["ages"][:24].tolist().count(1) == 8 and start.replay.tensors["ages"].max() >= 2


def test_what_a_run_tells_are_means_over_its_steps() -> None:
    """Without noise a chain on ½x² halves x at λ = ½: energies before each step are 2, ½ and ⅛."""
    state, info = run(
        langevin.step, generator(), torch.full((3, 1), 2.0), quadratic(torch.ones(1)), Kernel(0.5, 0.0), 3
    )
    assert state.position.eq(0.25).all()
    torch.testing.assert_close(info.energy, torch.full((3,), (2 + 1 / 2 + 1 / 8) / 3))
    torch.testing.assert_close(info.drift, torch.full((3,), (1 + 1 / 2 + 1 / 4) / 3))
    assert info.noise.eq(0).all() and info.accepted.eq(1).all()


def test_the_state_alone_is_differentiated() -> None:
    """Starts that require a gradient get none, and chains leave no graph behind."""
    start = torch.zeros(3, 2, requires_grad=True)
    for step in (langevin.step, metropolis.step):
        state, _ = step(generator(), State(start), lambda x: x.square().sum(1), Kernel(0.1))
        assert state.position.grad_fn is None


@pytest.mark.parametrize("step", [langevin.step, metropolis.step])
def test_chains_run_where_gradients_are_off(step: chain.Step) -> None:
    """A service that scores in ``torch.inference_mode`` may sample there too."""
    ends, energy = [], Counting()
    for mode in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            state, _ = run(step, generator(), torch.ones(5, 2), energy, Kernel(0.1), 4)
        ends.append(state.position)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_rejecting_needs_no_bounds() -> None:
    """Where the energy overflows a chain stays where it was."""
    kernel = Kernel(0.1, space=Space(outside="reject"))
    state, info = langevin.step(generator(), State(torch.ones(4, 2)), lambda x: x.sum(1) * 1e38 * 1e2, kernel)
    assert state.position.eq(1).all() and info.accepted.eq(0).all()


@pytest.mark.parametrize("first", [1e6, 1.0, 1e-6])
def test_a_step_size_that_is_accepted_about_half_of_the_time(first: float) -> None:
    start = torch.randn(500, 3, generator=generator())

    def energy(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(1)

    size = metropolis.suggest_step_size(generator(), start, energy, Kernel(first), steps=30)
    _, info = run(metropolis.step, generator(), start, energy, Kernel(size), 30)
    assert 0.4 < info.accepted.mean() < 0.75
    with pytest.raises(ValueError, match=r"No step size is accepted about half of the time; at .* 0% were"):
        metropolis.suggest_step_size(generator(), start, lambda x: x.sum(1) * torch.nan, Kernel(first))


def test_bad_settings_name_themselves() -> None:
    with pytest.raises(ValueError, match="step_size must be a finite number, above 0; got 0"):
        Kernel(0)
    with pytest.raises(ValueError, match="temperature must be .* above 0"):
        Kernel(0.1, temperature=-1.0)
    with pytest.raises(ValueError, match="noise must be .* at least 0"):
        Kernel(0.1, -0.1)
    with pytest.raises(ValueError, match="steps must be an integer of at least 1; got 0"):
        run(langevin.step, generator(), torch.zeros(2, 2), lambda x: x.sum(1), Kernel(0.1), 0)
    with pytest.raises(ValueError, match=r"start must be \(n, \*shape\) with n ≥ 1; got shape \(0, 2\)"):
        run(langevin.step, generator(), torch.zeros(0, 2), lambda x: x.sum(1), Kernel(0.1), 1)
    for start in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2).numpy()):
        with pytest.raises(TypeError, match="start must be a tensor of floats, or a State; got (torch.int64|ndarray)"):
            run(langevin.step, generator(), start, lambda x: x.sum(1), Kernel(0.1), 1)
    with pytest.raises(ValueError, match="energy must return one number for each of 2 rows; got float"):
        run(langevin.step, generator(), torch.zeros(2, 2), lambda x: 1.0, Kernel(0.1), 1)
    with pytest.raises(ValueError, match="energy must depend on the positions"):
        run(langevin.step, generator(), torch.zeros(2, 2), lambda x: torch.zeros(2), Kernel(0.1), 1)
    with pytest.raises(ValueError, match="tries must be an integer of at least 1; got 0"):
        metropolis.suggest_step_size(generator(), torch.zeros(2, 2), lambda x: x.sum(1), Kernel(0.1), tries=0)
    ring = Replay(4, (2,), torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"ages must be \(2,\) of torch.float32, one a position; got \(2,\) of torch.int64"
    ):
        ring.push(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    assert ring.tensors["positions"].eq(0).all()
    with pytest.raises(RuntimeError, match="call begin before end"):
        Persistent(ring, lambda g, rows: rows, 0.05).end(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"positions takes .* GiB; this machine has .* Make replay_size smaller"):
        Replay(10**9, (3, 224, 224), torch.device("cpu"))
    with pytest.raises(ValueError, match="low must be below high"):
        Space(1.0, 0.0)
    with pytest.raises(ValueError, match="low must be a finite number; got nan"):
        Space(math.nan, 1.0)
    with pytest.raises(ValueError, match="A sphere has no bounds"):
        Space(-0.3, 0.3, sphere=True)
    for shape in ((2, 1), (2, 1, 3, 3)):
        with pytest.raises(ValueError, match=r"On the sphere start must be \(n, k\) with k ≥ 2"):
            run(langevin.step, generator(), torch.ones(shape), lambda x: x, Kernel(0.1, space=Space(sphere=True)), 1)
    for energy in (lambda x: x.sum(), lambda x: x.sum(1, keepdim=True)):
        with pytest.raises(ValueError, match="energy must return one number for each of 5 rows; got shape"):
            run(metropolis.step, generator(), torch.zeros(5, 2), energy, Kernel(0.1), 1)
    with pytest.raises(ValueError, match="restart must be a finite number, at least 0, at most 1; got 1.5"):
        Replay(4, (2,), torch.device("cpu")).draw(generator(), torch.zeros(2, 2), 1.5)
    with pytest.raises(ValueError, match="noise above 0"):
        metropolis.step(generator(), State(torch.zeros(2, 2)), lambda x: x.sum(1), Kernel(0.1, 0.0))


def test_a_chain_goes_on_by_another_energy() -> None:
    """What the state knows of the old one is not taken for the new one's: the same law, a thousand lower."""

    def low(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x.square().sum(1) - 1000

    state, _ = run(metropolis.step, generator(), torch.zeros(500, 1), low, Kernel(0.2), 5)
    _, info = run(metropolis.step, generator(), state, lambda x: low(x) + 1000, Kernel(0.2), 5)
    assert info.accepted.mean() > 0.8


def test_a_temperature_may_be_a_number_that_is_asked_for() -> None:
    drawn = [
        run(langevin.step, generator(), torch.ones(4, 1), lambda x: x.square().sum(1), Kernel(0.1, temperature=T), 3)[0]
        for T in (0.5, lambda: 0.5)
    ]
    assert torch.equal(drawn[0].position, drawn[1].position)
    with pytest.raises(ValueError, match="anneal must be True or False; got 'no'"):
        Kernel(0.1, anneal="no")  # type: ignore[arg-type]
