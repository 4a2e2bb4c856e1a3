"""The Metropolis-adjusted Langevin step."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.sampling.chain import Energy, Info, Kernel, State, evaluated, norms, run


def step(generator: torch.Generator, state: State, energy: Energy, kernel: Kernel) -> tuple[State, Info]:
    """Propose a Langevin move and accept it so that exp(−E/T) stays exactly as it is, for any T, λ and σ.

    With drift b(x) = −λ ∇E(x)/T (clipped or not) a proposal y = x + b(x) + σ ε is accepted with
    log α = −ΔE/T − (‖x − y − b(y)‖² − ‖σ ε‖²)/(2 σ²). One gradient a step: an accepted proposal keeps its own.

    Raises
    ------
    ValueError
        On the sphere, with clamping or without noise: such proposals have no density to correct for.
    """
    space = kernel.space
    if space.sphere or (space.bounded and space.outside == "clamp"):
        where = "the sphere" if space.sphere else "clamped bounds"
        raise ValueError(f"Adjusted steps need a space without {where}; use outside='reject', or unadjusted steps.")
    sigma = kernel.deviation(state.step)
    if sigma == 0:
        raise ValueError("Adjusted steps need noise above 0.")
    state = evaluated(state, energy)
    assert state.energy is not None and state.gradient is not None
    drift = kernel.drift(state.gradient)
    noise = torch.empty_like(state.position).normal_(generator=generator) * sigma
    proposal = evaluated(State(state.position + drift + noise), energy)
    assert proposal.energy is not None and proposal.gradient is not None
    back = -(drift + noise) - kernel.drift(proposal.gradient)
    log_ratio = (state.energy - proposal.energy) / kernel.current_temperature - (
        back.flatten(1).square().sum(1) - noise.flatten(1).square().sum(1)
    ) / (2 * sigma**2)
    uniform = torch.empty_like(state.energy).uniform_(generator=generator)
    # A ratio that is not a number compares as False: such a proposal is not taken.
    accepted = (uniform.log() < log_ratio) & space.contains(proposal.position)
    wide = accepted.view(-1, *[1] * (noise.ndim - 1))
    new = State(
        torch.where(wide, proposal.position, state.position),
        torch.where(accepted, proposal.energy, state.energy),
        torch.where(wide, proposal.gradient, state.gradient),
        state.step + 1,
    )
    return new, Info(accepted.to(noise.dtype), norms(drift), norms(noise), state.energy)


def suggest_step_size(
    generator: torch.Generator, start: Tensor, energy: Energy, kernel: Kernel, *, steps: int = 10, tries: int = 100
) -> float:
    """Return λ (with σ² = 2λ) at which adjusted chains from ``start`` accept about 57 % of their proposals.

    That is the rate at which they mix fastest in many dimensions (Roberts & Rosenthal, 1998). Each try runs ``steps``
    steps, as many as the chains are to have: what is accepted changes as they leave their starts.

    Raises
    ------
    ValueError
        Where none of so many ``tries`` is accepted often enough and not too often.
    """
    parameters.integer("tries", tries)
    step_size = kernel.step_size
    for _ in range(tries):
        trial = dataclasses.replace(kernel, step_size=step_size, noise=None)
        _, info = run(step, generator, start, energy, trial, steps)
        accepted = float(info.accepted.mean())
        if 0.45 < accepted < 0.7:
            return step_size
        step_size *= 0.6 if accepted < 0.57 else 1.5
    raise ValueError(f"No step size is accepted about half of the time; at {trial.step_size:.3g} {accepted:.0%} were.")
