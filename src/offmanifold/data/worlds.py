"""Worlds with one latent variable whose decoder, density and posterior are known (P2, appendices F, H and I)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import betaincinv, expit, ndtr

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array
from offmanifold.measures.estimates import Estimate, mean_of
from offmanifold.probability.grids import gaussian_log_prob, log_mixture, path_nodes

# z (n,), and labels (n,) where the world has them → (n, d).
Decoder = Callable[..., Float64Array]
POSTERIOR_GRID: Float64Array = np.linspace(-5, 5, 2001)


class Draw(NamedTuple):
    """Rows of a :class:`World` and where they come from.

    Attributes
    ----------
    x : (n, d) float64
    z : (n, 1) float64
    y : (n,) float64 or None
        Labels, in worlds that have them; 0 and 1 where they are binary.
    """

    x: Float64Array
    z: Float64Array
    y: Float64Array | None


@dataclasses.dataclass(frozen=True)
class World:
    """x = f(z) + ε or f(z, y) + ε with z ~ N(0, 1), ε ~ N(0, σ² I) (P2, appendices H and I).

    Attributes
    ----------
    name : str
    dimension : int
        d.
    noise_variance : float
        σ².
    decoder : callable
        f on ``(n,)`` arrays, unchecked; :meth:`decode` is the one to call.
    label : {"binary", "normal"} or None
        y ~ Bernoulli(½), y ~ N(0, 1), or no labels.
    simpler : World, optional
        One of the same p(x) whose posteriors are simpler.
    """

    name: str
    dimension: int
    noise_variance: float
    decoder: Decoder
    label: Literal["binary", "normal"] | None = None
    simpler: World | None = None

    def sample(self, n: int, rng: np.random.Generator) -> Draw:
        """Draw rows, their latents and, where there are any, their labels."""
        parameters.integer("n", n)
        z = rng.standard_normal((n, 1))
        y: Float64Array | None = None
        if self.label is not None:
            y = rng.standard_normal(n) if self.label == "normal" else rng.integers(2, size=n).astype(np.float64)
        noise = math.sqrt(self.noise_variance) * rng.standard_normal((n, self.dimension))
        return Draw(self.decode(z, y) + noise, z, y)

    def decode(self, z: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Float64Array:
        """Return f(z) or f(z, y) ``(n, d)``, from z ``(n, 1)`` or ``(n,)`` and y ``(n,)`` or one for all."""
        latents = np.asarray(z, dtype=np.float64)
        if latents.ndim not in (1, 2) or (latents.ndim == 2 and latents.shape[1] != 1):
            raise ValueError(f"z must be of shape (n, 1) or (n,); got {latents.shape}.")
        latents = latents.reshape(-1)
        if self.label is not None and y is None:
            raise ValueError(f"y is missing: {self.name} is decoded from z and a label.")
        labels = self._labels(y, len(latents))
        return self.decoder(latents) if labels is None else self.decoder(latents, labels)

    def log_likelihood(self, x: npt.ArrayLike, z: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Float64Array:
        """Return log p(x | z) or log p(x | z, y), row by row: ``(n,)`` nats."""
        rows, means = self._rows(x), self.decode(z, y)
        if len(rows) != len(means):
            raise ValueError(f"x and z must be pairs; got {len(rows)} and {len(means)} rows.")
        squares = ((rows - means) ** 2).sum(1) / self.noise_variance
        log_p: Float64Array = -0.5 * (squares + self.dimension * math.log(2 * math.pi * self.noise_variance))
        return log_p

    def log_prob(self, x: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Float64Array:
        """Return log p(x), or log p(x | y) where y ``(n,)`` (or one for all rows) is given: ``(n,)`` nats.

        By quadrature along the decoder's path: twice as many nodes change less than 10⁻⁷ nats where the world's rows
        lie.
        """
        rows = self._rows(x)
        labels = self._labels(y, len(rows))
        z, z_weights = self._nodes
        if labels is None:
            values, y_weights = self._label_nodes
            means = np.concatenate([self.decode(z, value) for value in values])
            return log_mixture(rows, means, (y_weights[:, None] + z_weights).reshape(-1), self.noise_variance)
        found = np.empty(len(rows))
        for value in np.unique(labels):
            own = labels == value
            found[own] = log_mixture(rows[own], self.decode(z, value), z_weights, self.noise_variance)
        return found

    def posterior(
        self, x: npt.ArrayLike, z: npt.ArrayLike = POSTERIOR_GRID, y: npt.ArrayLike | None = None
    ) -> Float64Array:
        """Return the density p(z | x), or p(z | x, y), of each row at each z ``(m,)``: ``(n, m)``.

        Normalised over all z, whatever grid is given. Without ``y`` labels are integrated out.
        """
        rows, points = self._rows(x), np.asarray(z, dtype=np.float64).reshape(-1)
        labels = self._labels(y, len(rows))
        log_p = np.full((len(rows), len(points)), -np.inf)
        if labels is None:
            for value, weight in zip(*self._label_nodes, strict=True):
                own = gaussian_log_prob(rows, self.decode(points, value), self.noise_variance)
                np.logaddexp(log_p, own + weight, out=log_p)
        else:
            for value in np.unique(labels):
                own = labels == value
                log_p[own] = gaussian_log_prob(rows[own], self.decode(points, value), self.noise_variance)
        log_prior = -0.5 * (points**2 + math.log(2 * math.pi))
        density: Float64Array = np.exp(log_p + log_prior - self.log_prob(rows, labels)[:, None])
        return density

    def nearest(self, x: npt.ArrayLike, y: npt.ArrayLike | None = None) -> tuple[Float64Array, Float64Array]:
        """Return the point of the curve f that is nearest to each row, and its z: ``(n, d)`` and ``(n,)``.

        Where the world has labels, ``y`` (one for all rows) says which curve.
        """
        rows = self._rows(x)
        nodes, _ = self._nodes
        z = np.interp(np.arange(16 * (len(nodes) - 1) + 1) / 16, np.arange(len(nodes)), nodes)
        # A search by thirds between the neighbours of the nearest of places a hundredth of the noise apart.
        place = np.clip(cKDTree(self.decode(z, y)).query(rows)[1], 1, len(z) - 2)
        low, high = z[place - 1], z[place + 1]
        for _ in range(40):
            third = (high - low) / 3
            left, right = (((rows - self.decode(at, y)) ** 2).sum(1) for at in (low + third, high - third))
            low, high = np.where(left < right, low, low + third), np.where(left < right, high - third, high)
        found = (low + high) / 2
        return self.decode(found, y), found

    def information(self, n: int, rng: np.random.Generator, *, level: float = 0.95) -> Estimate:
        """Estimate I(x; z), or I(x; z, y), in nats: the mean of log p(x | z) − log p(x) over n rows."""
        x, z, y = self.sample(n, rng)
        return mean_of(self.log_likelihood(x, z, y) - self.log_prob(x), level=level)

    def entropy(self, n: int, rng: np.random.Generator, *, level: float = 0.95) -> Estimate:
        """Estimate −E log p(x) in nats, which no model's −ELBO is below on average.

        It is :meth:`information` plus the noise's entropy d/2 log(2πe σ²): less noisy than the mean of −log p(x).
        """
        found = self.information(n, rng, level=level)
        noise = 0.5 * self.dimension * math.log(2 * math.pi * math.e * self.noise_variance)
        return Estimate(found.value + noise, found.low + noise, found.high + noise, level)

    def _rows(self, x: npt.ArrayLike) -> Float64Array:
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise ValueError(f"x must be of shape (n, {self.dimension}) in {self.name}; got {rows.shape}.")
        return rows

    def _labels(self, y: npt.ArrayLike | None, n: int) -> Float64Array | None:
        if y is None:
            return None
        if self.label is None:
            raise ValueError(f"y must be None: {self.name} has no labels.")
        labels = np.asarray(y, dtype=np.float64)
        if labels.shape not in ((), (n,)):
            raise ValueError(f"y must be one number or of shape ({n},), one for each row; got {labels.shape}.")
        if self.label == "binary" and not np.isin(labels, (0, 1)).all():
            raise ValueError(f"y must hold 0 and 1 alone in {self.name}; got {np.unique(labels)[:5]}.")
        return np.broadcast_to(labels, n)

    @functools.cached_property
    def _nodes(self) -> tuple[Float64Array, Float64Array]:
        """Nodes and log weights of the integral over z; with labels, fine enough for the steepest of them."""
        labels: dict[str | None, list[float | None]] = {
            None: [None], "binary": [0.0, 1.0], "normal": [-8.0, -1.0, 0.0, 1.0, 8.0],
        }  # fmt: skip
        paths = labels[self.label]
        # In a double integral each node costs hundreds.
        panel = 3.0 if self.label == "normal" else 2.0
        return path_nodes(lambda z: np.hstack([self.decode(z, y) for y in paths]), self.noise_variance, panel=panel)

    @functools.cached_property
    def _label_nodes(self) -> tuple[list[float] | list[None], Float64Array]:
        """The labels and their log probabilities; nodes and log weights where they are continuous."""
        if self.label is None:
            return [None], np.zeros(1)
        if self.label == "binary":
            return [0.0, 1.0], np.log([0.5, 0.5])
        latents = np.linspace(-2, 2, 5)
        y, weights = path_nodes(
            lambda y: np.hstack([self.decode(np.full(len(y), z), y[:, 0]) for z in latents]),
            self.noise_variance,
            panel=3.0,
        )
        return y.tolist(), weights


def _figure_8(z: Float64Array) -> Float64Array:
    u = (0.6 + 1.8 * ndtr(z)) * np.pi
    x = np.sqrt(2) * np.cos(u) / (np.sin(u) ** 2 + 1)
    return np.stack([0.5 * x, x * np.sin(u)], 1)


def _on_circle(angle: Float64Array) -> Float64Array:
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _circle(z: Float64Array) -> Float64Array:
    return _on_circle(2 * np.pi * ndtr(z))


def _absolute_value(z: Float64Array) -> Float64Array:
    return np.repeat(np.abs(2 * ndtr(z) - 1)[:, None], 2, 1)


def _straight(z: Float64Array) -> Float64Array:
    return np.repeat(ndtr(z)[:, None], 2, 1)


def _steps(u: Float64Array) -> Float64Array:
    """Return steps of 2, each as long: flat where u is even, steep where it is odd."""
    floor = np.floor(u / 2)
    steps: Float64Array = np.tanh(10 * u - 20 * floor - 10) + 2 * floor + 1
    return steps


def _clusters(z: Float64Array) -> Float64Array:
    return _on_circle(2 * _steps(2 * np.pi * expit(np.pi * z / 2)))


def spiral_dots(z: Float64Array, flattened: float = 0.0) -> Float64Array:
    """Return P2 Eq. 37, or what goes a part of the way from its dots to a spiral of even speed."""
    u = 4 * np.pi * expit(np.pi * z / 2)
    t: Float64Array = (1 - flattened) * _steps(u) + flattened * u
    return t[:, None] * _on_circle(t)


def _semi_circle(z: Float64Array, share: Float64Array) -> Float64Array:
    mass = ndtr(z)
    return _on_circle(np.pi * (share * np.sqrt(mass) + (1 - share) * mass**3))


def _discrete_semi_circle(z: Float64Array, y: Float64Array) -> Float64Array:
    return _semi_circle(z, 1 - y)


def _continuous_semi_circle(z: Float64Array, y: Float64Array) -> Float64Array:
    return _semi_circle(z, betaincinv(0.2, 0.2, ndtr(y)))


# P2, appendix F.
EMBEDDING = np.array([[1.0, 0.0, 0.5, 0.2, -0.8], [0.0, 1.0, -0.5, 0.3, -0.1]])


def embedded(world: World, matrix: npt.ArrayLike = EMBEDDING, *, name: str | None = None) -> World:
    """Return the world of f(z) A + ε: a linear map of the decoder, with the same noise in all the new dimensions."""
    linear = np.asarray(matrix, dtype=np.float64)
    if linear.ndim != 2 or len(linear) != world.dimension:
        raise ValueError(
            f"matrix must have {world.dimension} rows, as many as {world.name} has dimensions; got "
            f"shape {linear.shape}."
        )

    def decoder(*latents: Float64Array) -> Float64Array:
        return world.decoder(*latents) @ linear

    dimension = linear.shape[1]
    simpler = None if world.simpler is None else embedded(world.simpler, linear)
    name = name or f"{world.name}-{dimension}d"
    return dataclasses.replace(world, name=name, dimension=dimension, decoder=decoder, simpler=simpler)


FIGURE_8 = World("figure-8", 2, 0.02, _figure_8)
CLUSTERS = World("clusters", 2, 0.2, _clusters)
WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        FIGURE_8,
        World("circle", 2, 0.01, _circle),
        # Eq. 35 prints |Φ(z)|, which is Φ(z). |2Φ(z) − 1| is even in z, and uniform on [0, 1] as Φ(z) is.
        World("absolute-value", 2, 0.01, _absolute_value, simpler=World("absolute-value-simpler", 2, 0.01, _straight)),
        CLUSTERS,
        World("spiral-dots", 2, 0.01, spiral_dots),
        World("discrete-semi-circle", 2, 0.01, _discrete_semi_circle, "binary"),
        # Eq. 39 gives no variance; that of the discrete one is taken.
        World("continuous-semi-circle", 2, 0.01, _continuous_semi_circle, "normal"),
        embedded(FIGURE_8),
        embedded(CLUSTERS),
    )
}


def world_named(name: str) -> World:
    """Return an entry of :data:`WORLDS`; an unknown name raises ``ValueError`` with the nearest known one."""
    return WORLDS[parameters.choice("name", name, WORLDS)]
