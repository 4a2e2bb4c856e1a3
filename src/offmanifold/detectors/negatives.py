"""Where a model's negatives come from: the user, the model itself, noise (P1 §III-C)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.data import outliers
from offmanifold.data.files import open_source
from offmanifold.data.inputs import Rows
from offmanifold.detectors.chains import Chain
from offmanifold.detectors.variational_autoencoder import VariationalAutoencoder
from offmanifold.probability.divergences import kl_to_standard_normal
from offmanifold.sampling import langevin
from offmanifold.sampling.chain import Kernel, Space
from offmanifold.sampling.starts import FromData

T = TypeVar("T")
# (batch of rows, generator) → as many negatives, without gradient.
Source = Callable[[Tensor, torch.Generator], Tensor]
SOURCES = ("given", "adversarial", "hard", "noise", "random")
# P1 §IV-C, for pixels; in standard deviations for standardised columns.
NOISE = 0.25
# Of ∇E, element by element, as in P3's chains on pixels.
CLIP = 0.01


def weights_of(argument: str, value: str | Mapping[str, float]) -> dict[str, float]:
    """Check a source's name, or a mapping of names to weights."""
    if isinstance(value, str):
        return {parameters.choice(argument, value, SOURCES): 1.0}
    if not isinstance(value, Mapping) or not value:
        raise parameters.InvalidParameter(
            f"{argument} must be a source's name, or weights by name; got {type(value).__name__}. Rows that are not "
            "normal go to fit(X, negatives=rows)."
        )
    return {
        parameters.choice(argument, name, SOURCES): parameters.real(f"{argument}[{name!r}]", weight, above=0)
        for name, weight in value.items()
    }


def rows_given(negatives: Any, like: Any) -> Rows:
    """Return a user's negatives, an array, a frame or a path, as rows of the training rows' kind.

    Raises
    ------
    ValueError
        For rows of another shape.
    """
    if isinstance(negatives, str | os.PathLike):
        if str(negatives) in SOURCES:
            raise ValueError(
                f"fit's negatives are rows or a path to them; a source is set by NegativeVAE(negatives={negatives!r})."
            )
        negatives = open_source(negatives).load()
    return named("negatives", lambda: Rows(negatives, like, "the detector"))


def named(name: str, read: Callable[[], T]) -> T:
    """Return what ``read`` returns; its errors name the argument that they are about."""
    try:
        return read()
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error


def overlap(negatives: Tensor, known: Sequence[Tensor]) -> int:
    """Return how many negatives are among the ``known`` rows, to the last bit."""
    told = [row.tobytes() for row in negatives.cpu().numpy()]
    own = set(told)
    found = {key for part in known for row in part.cpu().numpy() if (key := row.tobytes()) in own}
    return sum(key in found for key in told)


def given(pool: Tensor) -> Source:
    """Draw from the user's rows, with replacement."""

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        return pool[torch.randint(len(pool), (len(rows),), generator=generator, device=pool.device)]

    return draw


def generated(model: VariationalAutoencoder, latent_dim: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return what draws E[x | z] for z from the prior; its gradient reaches the decoder."""

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        codes = rows.new_empty(len(rows), latent_dim).normal_(generator=generator)
        return model.likelihood.mean(model.decoder(codes))

    return draw


def noisy(image: bool) -> Source:
    """Add Gaussian noise to the rows."""

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        made = rows + NOISE * torch.empty_like(rows).normal_(generator=generator)
        return made.clamp(0, 1) if image else made

    return draw


def uniform(bounds: tuple[float, float]) -> Source:
    """Draw every cell uniformly."""

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(rows).uniform_(*bounds, generator=generator)

    return draw


def hard(
    model: VariationalAutoencoder, latent_dim: int, chain: tuple[int, float, float], bounds: tuple[float, float]
) -> Source:
    """Search for rows that the model finds likely and that are no data: short Langevin chains on minus its ELBO.

    They start, in turn, at the model's own samples and at synthetic outliers made from the batch, a family at random:
    near the data, and where the model is wrong about them. The energy is the ELBO at the posterior's mean, per
    dimension.
    """
    steps, step_size, noise = chain
    own = generated(model, latent_dim)

    def energy(rows: Tensor) -> Tensor:
        mean, log_std = model.posterior(rows)
        unlikely = -model.likelihood.cells(rows, model.decoder(mean)).flatten(1).sum(1)
        return (unlikely + kl_to_standard_normal(mean, log_std).sum(1)) / rows[0].numel()

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        image = rows.ndim == 4
        makers = outliers.WATCHED["image" if image else "table"]
        maker = makers[int(torch.randint(len(makers), (), generator=generator, device=rows.device))]
        starts = own(rows, generator).detach()
        starts[::2] = maker(rows, generator)[::2]
        kernel = Kernel(step_size, noise, clip=CLIP if image else None, space=Space(*bounds))
        return Chain(FromData(), langevin.step, kernel, steps, model).negatives(generator, starts, energy)[0]

    return draw
