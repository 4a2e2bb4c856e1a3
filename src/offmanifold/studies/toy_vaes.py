"""What the studies of P2's toy worlds share: stacks of small VAEs, from random weights and from the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from offmanifold.data.worlds import World
from offmanifold.detectors.training_bounds import MOST_REPEATS, settled
from offmanifold.networks.stacked import StackedMLP
from offmanifold.probability import bounds
from offmanifold.probability.divergences import kl_to_standard_normal
from offmanifold.probability.grids import log_mixture, path_nodes
from offmanifold.probability.latents import split_posterior
from offmanifold.probability.likelihoods import LOG_2PI
from offmanifold.training.loop import train
from offmanifold.training.phases import Metrics, Optimizer, ParameterGroup, Phase, Schedule, Update

Array = npt.NDArray[np.float64]
# P2, appendix J.
HIDDEN, BATCH, RATE = (50, 50, 50), 100, 1e-3
METHODS = ("VAE", "LIN", "IWAE")
NOISE_RATE = 5.0


class StackedVAE(nn.Module):
    """Restarts of one VAE with a fixed or learned noise variance.

    Parameters
    ----------
    dimension, latent_dim : int
    seeds : sequence of int
        One a restart: of its weights and of its noise.
    noise_variance : float
        σ², where it is learned only its start; then there is one for each dimension.
    learned : bool
    hidden : sequence of int
        Widths of the encoder's and of the decoder's hidden layers; none for a linear model.
    dtype : torch.dtype
    """

    def __init__(
        self,
        dimension: int,
        latent_dim: int,
        seeds: Sequence[int],
        noise_variance: float,
        *,
        learned: bool = False,
        hidden: Sequence[int] = HIDDEN,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.latent_dim = latent_dim
        self.encoder = StackedMLP((dimension, *hidden, 2 * latent_dim), generators, dtype)
        self.decoder = StackedMLP((latent_dim, *hidden, dimension), generators, dtype)
        start = torch.full((len(seeds), 1, dimension), float(np.log(noise_variance)), dtype=dtype)
        self.log_variance = nn.Parameter(start, requires_grad=learned)
        # Each restart draws from a stream of its own: what it learns does not depend on its neighbours.
        self.noise = [torch.Generator().manual_seed(seed + 1_000_003) for seed in seeds]

    def __len__(self) -> int:
        return len(self.noise)

    def drawn(self, samples: int, rows: int, like: Tensor) -> Tensor:
        """Return standard normal noise ``(samples, restarts, rows, latent_dim)``."""
        parts = [like.new_empty(samples, rows, self.latent_dim).normal_(generator=noise) for noise in self.noise]
        return torch.stack(parts, 1)

    def bound(self, rows: Tensor, noise: Tensor, *, iwae: bool) -> Tensor:
        """Return the ELBO or the importance-weighted bound: ``(restarts, n)`` nats."""
        stacked = rows.expand(len(self), *rows.shape)
        encoded = self.encoder(stacked)
        mean, log_std = split_posterior(encoded.flatten(0, 1))
        mean, log_std = (part.view(len(self), len(rows), -1) for part in (mean, log_std))
        codes = mean + log_std.exp() * noise
        samples = len(noise)
        flat = codes.permute(1, 0, 2, 3).reshape(len(self), samples * len(rows), -1)
        decoded = self.decoder(flat).view(len(self), samples, len(rows), -1).transpose(0, 1)
        squared = (rows - decoded).square() * (-self.log_variance).exp() + self.log_variance + LOG_2PI
        log_likelihood = -0.5 * squared.sum(-1)
        if iwae:
            return bounds.iwae(bounds.gaussian_log_weights(log_likelihood, codes, noise, log_std))
        elbo: Tensor = log_likelihood.mean(0) - kl_to_standard_normal(mean, log_std).sum(-1)
        return elbo


@dataclasses.dataclass(frozen=True)
class Method:
    """How a stack is trained.

    Attributes
    ----------
    name : {"VAE", "LIN", "IWAE"}
    samples : int
        S of IWAE.
    lagging : (float, int)
        T and R of LIN.
    schedule : {"constant", "one-cycle", "cosine"}
        Of the joint training. At the papers' constant rate the last weights' ELBO still jumps by .05 nats and more.
    """

    name: str
    samples: int = 1
    lagging: tuple[float, int] = (0.1, 5)
    schedule: Schedule = "constant"


def method_named(name: str) -> Method:
    """Return a method with the settings of the studies: S = 20; T = 0.1, R = 5."""
    return Method(name, samples=20 if name == "IWAE" else 1)


def fit_stack(
    model: StackedVAE,
    rows: Tensor,
    held_out: Tensor,
    method: Method,
    *,
    steps: int,
    seed: int,
    truth: tuple[World, Sequence[bool]] | None = None,
    joint_steps: int | None = None,
    pairs: bool = False,
) -> None:
    """Train a stack in place.

    Parameters
    ----------
    model : StackedVAE
    rows, held_out : (n, d) and (m, d)
    method : Method
    steps : int
        Of each phase; LIN's encoder takes more.
    seed : int
        Of the batches' order, which is the same for all restarts.
    truth : (World, flags), optional
        The flagged restarts begin at the true decoder, learned under full supervision, and at the encoder that is best
        for it (P2, appendix J). Their latents beyond the first start without a say.
    joint_steps : int, optional
        Of the joint training, where it is to take other than ``steps``; 0 leaves what the truth gave.
    pairs : bool
        Whether the encoder of a true decoder first learns z from pairs (x, z) drawn from the world: q then covers the
        posterior, where the bound alone does not find a far place on the curve.
    """
    encoder = ParameterGroup.of("encoder", model.encoder)
    decoder = ParameterGroup.of("decoder", model.decoder)
    groups: tuple[ParameterGroup, ...] = (encoder, decoder)
    if model.log_variance.requires_grad:
        groups = (*groups, ParameterGroup.of("noise", [model.log_variance], rate_scale=NOISE_RATE))
    optimizer = Optimizer(RATE, schedule=method.schedule)

    def loss(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        noise = model.drawn(method.samples, len(batch), batch)
        return -model.bound(batch, noise, iwae=method.name == "IWAE").sum(0), {}

    phases = []
    if truth is not None:
        world, flags = truth
        chosen = torch.tensor(flags, dtype=rows.dtype)[:, None]

        def decoded(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            codes = batch.new_empty(1, len(batch), model.latent_dim).normal_(generator=generator)
            wanted = torch.from_numpy(world.decode(codes[0, :, :1].double().numpy())).to(batch)
            errors = (model.decoder(codes.expand(len(model), -1, -1)) - wanted).square().mean(-1)
            # Restarts that are not flagged get no gradient, and Adam leaves them where they are.
            return (chosen * errors).sum(0), {}

        def flagged(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            noise = batch.new_empty(1, 1, len(batch), model.latent_dim).normal_(generator=generator)
            return -(chosen * model.bound(batch, noise, iwae=False)).sum(0), {}

        def paired(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            z = batch.new_empty(len(batch), 1).normal_(generator=generator)
            noise = torch.empty_like(batch).normal_(generator=generator)
            x = torch.from_numpy(world.decode(z.double().numpy())).to(batch) + world.noise_variance**0.5 * noise
            mean, log_std = split_posterior(model.encoder(x.expand(len(model), -1, -1)).flatten(0, 1))
            mean, log_std = (part.view(len(model), len(batch), -1)[..., 0] for part in (mean, log_std))
            return (chosen * (0.5 * ((z[:, 0] - mean) / log_std.exp()).square() + log_std)).sum(0), {}

        warm = Optimizer(5 * RATE, schedule="cosine")
        phases.append(_phase("decoder", (Update((decoder,), decoded, warm),), steps))
        if pairs:
            phases.append(_phase("pairs", (Update((encoder,), paired, warm),), steps))
        phases.append(_phase("encoder", (Update((encoder,), flagged, Optimizer(RATE)),), steps))
    updates = [Update(groups, loss, optimizer)]
    if method.name == "LIN":
        # A stack waits for the mean of its restarts, so that here, and here alone, one depends on the others.
        enough = settled(method.lagging[0], method.lagging[1], 1 / len(model))
        updates.insert(0, Update((encoder,), loss, optimizer, repeats=MOST_REPEATS, repeat_until=enough))
    if joint_steps != 0:
        phases.append(_phase("joint", tuple(updates), joint_steps or steps))
    train(model, phases, rows, held_out, seed=seed)


def _phase(name: str, updates: tuple[Update, ...], steps: int) -> Phase:
    """Return a phase that keeps its last weights: restarts are chosen among afterwards."""
    return Phase(name, updates, steps, BATCH, judge=_nothing, keep="last", checks=4)


def _nothing(held_out: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
    return 0.0, {}


@torch.no_grad()
def objectives(model: StackedVAE, rows: Tensor, method: Method, *, repeats: int = 20) -> Array:
    """Return each restart's mean training objective on rows, as a loss: ``(restarts,)`` nats."""
    iwae = method.name == "IWAE"
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(model), dtype=torch.float64)
    for _ in range(repeats):
        shape = (method.samples, 1, len(rows), model.latent_dim)
        noise = rows.new_empty(shape).normal_(generator=generator)
        total -= model.bound(rows, noise, iwae=iwae).double().mean(1)
    return (total / repeats).numpy()


@torch.no_grad()
def decode(model: StackedVAE, restart: int, z: Array) -> Array:
    """Return one restart's E[x | z] ``(n, d)``."""
    codes = torch.from_numpy(z).to(model.log_variance.dtype).reshape(len(z), -1)
    return np.asarray(model.decoder.one(restart, codes).double().numpy())


@torch.no_grad()
def posterior(model: StackedVAE, restart: int, x: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of one restart's q(z | x): ``(n, k)`` each."""
    rows = torch.from_numpy(x).to(model.log_variance.dtype)
    mean, log_std = split_posterior(model.encoder.one(restart, rows))
    return mean.double().numpy(), log_std.exp().double().numpy()


def projected(model: StackedVAE, restart: int, rows: Tensor) -> Tensor:
    """Return one restart's decode(mean of q(z | x)) ``(n, d)``, through which gradients pass (P2's M, appendix K)."""
    return model.decoder.one(restart, model.encoder.one(restart, rows)[:, : model.latent_dim])


@torch.no_grad()
def best_variance(model: StackedVAE, restart: int, rows: Tensor, *, repeats: int = 20) -> Array:
    """Return the noise variance that maximises one restart's ELBO: E_q (x − f(z))², ``(d,)`` (P2 Eq. 5)."""
    mean, std = (torch.from_numpy(part).float() for part in posterior(model, restart, rows.double().numpy()))
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(repeats):
        codes = mean + std * torch.empty_like(mean).normal_(generator=generator)
        again = torch.from_numpy(decode(model, restart, codes.double().numpy()))
        total += (rows.double() - again).square().mean(0)
    return np.asarray((total / repeats).numpy())


def variance(model: StackedVAE, restart: int) -> Array:
    """Return one restart's noise variance ``(d,)``."""
    return model.log_variance[restart, 0].detach().double().exp().numpy()


def samples(model: StackedVAE, restart: int, n: int, rng: np.random.Generator) -> Array:
    """Draw ``(n, d)`` rows from one restart's model."""
    means = decode(model, restart, rng.standard_normal((n, model.latent_dim)))
    return means + np.sqrt(variance(model, restart)) * rng.standard_normal(means.shape)


def log_prob(model: StackedVAE, restart: int, x: Array) -> Array:
    """Return one restart's log p(x), by quadrature over its one latent: ``(n,)`` nats."""
    own = variance(model, restart)
    nodes, weights = path_nodes(lambda z: decode(model, restart, z), own, panel=4.0, order=8, resolution=2**12)
    return log_mixture(x, decode(model, restart, nodes[:, None]), weights, own)


def data(world: World, seed: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor, Array]:
    """Return rows to train, to choose and to test with."""
    drawn = world.sample(sum(sizes), np.random.default_rng(seed)).x
    first, second = sizes[0], sizes[0] + sizes[1]
    return torch.from_numpy(drawn[:first]).float(), torch.from_numpy(drawn[first:second]).float(), drawn[second:]


def origins(world: World, seed: int, sizes: Sequence[int]) -> Array:
    """Return the z ``(n, 1)`` of the test rows that :func:`data` returns."""
    return world.sample(sum(sizes), np.random.default_rng(seed)).z[sizes[0] + sizes[1] :]


class Trained(NamedTuple):
    """A trained stack and the restart that was chosen.

    Attributes
    ----------
    model : StackedVAE
    best : int
        The restart with the best objective on the rows to choose by.
    losses : (restarts,)
        Their objectives on those rows, as losses.
    train : (n, d) tensor
    test : (m, d) array
        What neither training nor choice has seen.
    """

    model: StackedVAE
    best: int
    losses: Array
    train: Tensor
    test: Array


def trained(
    world: World,
    latent_dim: int,
    method: Method,
    *,
    seed: int,
    sizes: Sequence[int],
    steps: int,
    from_truth: Sequence[bool],
    learned: bool = False,
    noise_variance: float | None = None,
    joint_steps: int | None = None,
    pairs: bool = False,
) -> Trained:
    """Draw a data set, train one restart for each of the flags ``from_truth``, and choose the best.

    Parameters are those of :class:`StackedVAE`, :func:`data` and :func:`fit_stack`; σ² is the world's if none is given.
    """
    first, second, last = sizes
    train_rows, choosing, test = data(world, seed, (first, second, last))
    seeds = [1000 * seed + i for i in range(len(from_truth))]
    variance = world.noise_variance if noise_variance is None else noise_variance
    model = StackedVAE(world.dimension, latent_dim, seeds, variance, learned=learned)
    truth = (world, from_truth) if any(from_truth) else None
    fit_stack(
        model, train_rows, choosing, method, steps=steps, seed=seed, truth=truth, joint_steps=joint_steps, pairs=pairs
    )
    losses = objectives(model, choosing, method)
    return Trained(model, int(np.argmin(losses)), losses, train_rows, test)
