"""What chains consist of: the space they live in, the step's size and noise, states, and the run of many steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from offmanifold import parameters

# positions (n, *shape) → energies (n,); each row is a chain of its own.
Energy = Callable[[Tensor], Tensor]
OUTSIDE = ("clamp", "reject")


class State(NamedTuple):
    """Where ``n`` chains stand.

    Attributes
    ----------
    position : (n, *shape)
    energy, gradient : (n,) and (n, *shape), or None
        At ``position``, where they are known: no step computes them twice, and the last step of an unadjusted chain
        does not compute them at all.
    step : int
        Steps taken: what annealed noise goes by.
    """

    position: Tensor
    energy: Tensor | None = None
    gradient: Tensor | None = None
    step: int = 0


class Info(NamedTuple):
    """What a step did, ``(n,)`` each and on the chains' device.

    Attributes
    ----------
    accepted : share of the proposals taken: 0 or 1 for one step
    drift, noise : Euclidean norms of the step's two parts
    energy : at the position that the step left
    """

    accepted: Tensor
    drift: Tensor
    noise: Tensor
    energy: Tensor


@dataclasses.dataclass(frozen=True)
class Space:
    """Where positions may be.

    Attributes
    ----------
    low, high : float or None
        The same bounds for every coordinate.
    outside : {"clamp", "reject"}
        What happens to a proposal beyond them: it is brought back coordinate by coordinate, or the chain stays where
        it was.
    sphere : bool
        Positions ``(n, k)`` are on the unit sphere: each move is projected back.
    """

    low: float | None = None
    high: float | None = None
    outside: str = "clamp"
    sphere: bool = False

    def __post_init__(self) -> None:
        parameters.choice("outside", self.outside, OUTSIDE)
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None:
                parameters.real(name, bound)
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low} and {self.high}.")
        if self.sphere and self.bounded:
            raise ValueError("A sphere has no bounds: within them positions would leave it.")

    @property
    def bounded(self) -> bool:
        """Whether there is a bound."""
        return self.low is not None or self.high is not None

    def bring_back(self, position: Tensor) -> Tensor:
        """Project onto the sphere, and clamp where bounds clamp."""
        if self.sphere:
            position = F.normalize(position, dim=1)
        if self.bounded and self.outside == "clamp":
            position = position.clamp(self.low, self.high)
        return position

    def enter(self, position: Tensor) -> Tensor:
        """Bring starts inside, whatever becomes of proposals beyond: from outside a refused chain never gets in."""
        return dataclasses.replace(self, outside="clamp").bring_back(position)

    def at_bounds(self, position: Tensor) -> Tensor:
        """Return the share of the coordinates that are on a bound or beyond."""
        low, high = (at if at is not None else sign * torch.inf for at, sign in ((self.low, -1), (self.high, 1)))
        return ((position <= low) | (position >= high)).double().mean()

    def contains(self, position: Tensor) -> Tensor:
        """Say of each row ``(n,)`` whether it is finite and within the bounds."""
        flat = position.flatten(1)
        inside = torch.isfinite(flat).all(1)
        if self.low is not None:
            inside &= (flat >= self.low).all(1)
        if self.high is not None:
            inside &= (flat <= self.high).all(1)
        return inside


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Langevin step: x ← x − λ ∇E(x)/T + σ ε (P3, Eq. 8).

    Attributes
    ----------
    step_size : float
        λ.
    noise : float, optional
        σ. Default: √(2λ), with which a small step samples exp(−E/T).
    temperature : float or callable
        T, or what returns it, where it is learned; the one place where it enters.
    anneal : bool
        Noise σ/(1 + t) at step t = 0, 1, … (P3, appendix D.3).
    clip : float, optional
        Largest absolute value of an element of ∇E.
    space : Space
    """

    step_size: float
    noise: float | None = None
    temperature: float | Callable[[], Tensor] = 1.0
    anneal: bool = False
    clip: float | None = None
    space: Space = Space()

    def __post_init__(self) -> None:
        parameters.real("step_size", self.step_size, above=0)
        if not isinstance(self.anneal, bool):
            raise ValueError(f"anneal must be True or False; got {self.anneal!r}.")
        if self.noise is not None:
            parameters.real("noise", self.noise, minimum=0)
        if not callable(self.temperature):
            parameters.real("temperature", self.temperature, above=0)
        if self.clip is not None:
            parameters.real("clip", self.clip, above=0)

    def deviation(self, step: int) -> float:
        """Return σ at step t = 0, 1, …"""
        sigma = math.sqrt(2 * self.step_size) if self.noise is None else self.noise
        return sigma / (1 + step) if self.anneal else sigma

    @property
    def current_temperature(self) -> float | Tensor:
        """T as it is now."""
        return torch.as_tensor(self.temperature()).detach() if callable(self.temperature) else self.temperature

    def drift(self, gradient: Tensor) -> Tensor:
        """Return −λ ∇E/T, clipped."""
        if self.clip is not None:
            gradient = gradient.clamp(-self.clip, self.clip)
        return gradient * (-self.step_size / self.current_temperature)


Step = Callable[[torch.Generator, State, Energy, Kernel], tuple[State, Info]]


def evaluated(state: State, energy: Energy) -> State:
    """Return ``state`` with energy and gradient, computed where they are missing.

    Differentiated with respect to the position alone: a model's weights get no gradient. In ``torch.inference_mode``
    as well.
    """
    if state.gradient is not None:
        return state
    with torch.inference_mode(False), torch.enable_grad():
        position = state.position.detach()
        position = (position.clone() if position.is_inference() else position).requires_grad_()
        energies = energy(position)
        if not isinstance(energies, Tensor) or energies.shape != position.shape[:1]:
            got = f"shape {tuple(energies.shape)}" if isinstance(energies, Tensor) else type(energies).__name__
            raise ValueError(f"energy must return one number for each of {len(position)} rows; got {got}.")
        if not energies.requires_grad:
            raise ValueError("energy must depend on the positions it is given: it has no gradient by them.")
        (gradient,) = torch.autograd.grad(energies.sum(), position)
    return state._replace(position=position.detach(), energy=energies.detach(), gradient=gradient)


def norms(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of each row ``(n,)``."""
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return lengths


def run(
    step: Step, generator: torch.Generator, start: Tensor | State, energy: Energy, kernel: Kernel, steps: int
) -> tuple[State, Info]:
    """Run ``n`` independent chains.

    Parameters
    ----------
    step : callable
        :func:`~offmanifold.sampling.langevin.step` or :func:`~offmanifold.sampling.metropolis.step`.
    generator : torch.Generator
        On the chains' device.
    start : (n, *shape) or State
        Positions, which are brought into the space first, or the state that an earlier run ended in: four steps and
        four more are eight steps, bit for bit. Its energy and gradient are computed anew, for ``energy`` may be another
        by now. NaN stays NaN, and adjusted chains stay where the energy is NaN: nothing looks, for that would wait for
        the device.
    energy : callable
        ``(n, *shape) → (n,)``.
    kernel : Kernel
    steps : int

    Returns
    -------
    State, Info
        The end, and each chain's means over its steps. Memory does not grow with ``steps``, and nothing waits for
        the device.

    Raises
    ------
    ValueError
        For starts without rows, off the sphere's kind, and energies that are not one number a row, or of which there is
        no gradient.
    TypeError
        For starts that are no tensor of floats.

    Examples
    --------
    Four hundred chains towards a standard normal, from far off:

    >>> import torch
    >>> from offmanifold.sampling import Kernel, metropolis, run
    >>> generator = torch.Generator().manual_seed(0)
    >>> energy = lambda x: 0.5 * x.square().sum(1)
    >>> state, info = run(metropolis.step, generator, torch.full((400, 2), 5.0), energy, Kernel(0.5), 200)
    >>> bool((state.position.var(0) - 1).abs().max() < 0.2), bool(info.accepted.mean() > 0.5)
    (True, True)
    """
    parameters.integer("steps", steps)
    position, total = start.position if isinstance(start, State) else start, None
    if not isinstance(position, Tensor) or not position.is_floating_point():
        kind = position.dtype if isinstance(position, Tensor) else type(position).__name__
        raise TypeError(f"start must be a tensor of floats, or a State; got {kind}.")
    if kernel.space.sphere and (position.ndim != 2 or position.shape[1] < 2):
        raise ValueError(f"On the sphere start must be (n, k) with k ≥ 2; got shape {tuple(position.shape)}.")
    if position.ndim < 2 or len(position) == 0:
        raise ValueError(f"start must be (n, *shape) with n ≥ 1; got shape {tuple(position.shape)}.")
    if isinstance(start, State):
        state = State(position, step=start.step)
    else:
        state = State(kernel.space.enter(position.detach()))
    for _ in range(steps):
        state, info = step(generator, state, energy, kernel)
        total = info if total is None else Info(*(a + b for a, b in zip(total, info, strict=True)))
    assert total is not None
    return state, Info(*(values / steps for values in total))
