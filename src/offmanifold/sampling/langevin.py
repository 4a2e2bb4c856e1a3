"""The unadjusted Langevin step."""

from __future__ import annotations

import torch

from offmanifold.sampling.chain import Energy, Info, Kernel, State, evaluated, norms


def step(generator: torch.Generator, state: State, energy: Energy, kernel: Kernel) -> tuple[State, Info]:
    """Move every chain once: x ← x − λ ∇E(x)/T + σ ε (P3, Eq. 8, with the ← that Algorithm 1 forgets).

    One gradient a step. With σ² = 2λ the chains sample exp(−E/T) up to a bias of the order of λ: where exp(−E/T) is a
    Gaussian of variance v, theirs is v/(1 − λ/(2v)). With another σ they sample the temperature T σ²/(2λ). On the
    sphere each move is projected back, which keeps the law to the same order.
    """
    state = evaluated(state, energy)
    assert state.energy is not None and state.gradient is not None
    position = state.position
    drift = kernel.drift(state.gradient)
    noise = torch.empty_like(position).normal_(generator=generator) * kernel.deviation(state.step)
    moved = kernel.space.bring_back(position + drift + noise)
    accepted = torch.ones_like(state.energy)
    if kernel.space.outside == "reject":
        inside = kernel.space.contains(moved)
        moved = torch.where(inside.view(-1, *[1] * (moved.ndim - 1)), moved, position)
        accepted = inside.to(accepted.dtype)
    return State(moved, step=state.step + 1), Info(accepted, norms(drift), norms(noise), state.energy)
