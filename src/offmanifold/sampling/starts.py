"""Where a chain on x starts: at the data, at an earlier chain's end, or on the decoder's manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from offmanifold.sampling import langevin
from offmanifold.sampling.chain import Energy, Info, Kernel, run
from offmanifold.sampling.replay import Replay

# (generator, rows) → fresh starts, as many as there are rows of data
Fresh = Callable[[torch.Generator, Tensor], Tensor]


class Start(Protocol):
    """Gives each batch's chains their starts and sees their ends."""

    tensors: dict[str, Tensor]

    def begin(self, generator: torch.Generator, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return starts like ``rows``, and metrics."""

    def end(self, positions: Tensor) -> None:
        """Take the chains' ends."""


class FromData:
    """Contrastive divergence (CD): chains start at the data and remember nothing."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def begin(self, generator: torch.Generator, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rows themselves."""
        return rows, {}

    def end(self, positions: Tensor) -> None:
        """Forget them."""


class Persistent:
    """Persistent contrastive divergence (PCD): chains go on where earlier ones ended.

    With restarts each is drawn from the buffer's many; without, each batch's chains are those of the batches before,
    one by one, and never end (of a smaller batch the first ones go on).

    Parameters
    ----------
    replay : Replay
        Of x.
    fresh : callable
        ``(generator, rows) → (n, *shape)``.
    restart : float
        Share of the chains that start anew; 0 is PCD without restart.
    """

    def __init__(self, replay: Replay, fresh: Fresh, restart: float) -> None:
        self.replay, self.fresh, self.restart = replay, fresh, restart
        self.tensors = replay.tensors
        self._ages: Tensor | None = None

    def begin(self, generator: torch.Generator, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Take starts from the buffer."""
        fresh = self.fresh(generator, rows)
        positions, self._ages = (
            self.replay.draw(generator, fresh, self.restart) if self.restart else self.replay.going_on(fresh)
        )
        return positions, {"replay_age": self._ages.mean()}

    def end(self, positions: Tensor) -> None:
        """Put the ends into the buffer."""
        if self._ages is None:
            raise RuntimeError("Chains end after they have begun: call begin before end.")
        keep = self.replay.push if self.restart else self.replay.put_back
        keep(positions, self._ages + 1)


class OnManifold:
    """On-manifold initialisation (OMI, P3 §4): a chain on z first, then x₀ = dec(z).

    Parameters
    ----------
    decode : callable
        ``(n, k) → (n, *shape)``.
    energy : callable
        E(x); the latent chain's is H(z) = E(dec(z)).
    kernel : Kernel
        Of the latent chain.
    steps : int
        Its length; 0 decodes the drawn codes as they are.
    fresh : callable
        ``(generator, rows) → (n, k)``: draws of the latent space's prior, or codes of the rows where codes follow none.
    replay : Replay, optional
        Of z; without it all chains start from fresh codes.
    restart : float
        Share of the latent chains that start from fresh codes.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        energy: Energy,
        kernel: Kernel,
        steps: int,
        fresh: Fresh,
        replay: Replay | None = None,
        restart: float = 0.05,
    ) -> None:
        self.decode, self.energy, self.kernel, self.steps = decode, energy, kernel, steps
        self.fresh, self.replay, self.restart = fresh, replay, restart
        self.tensors = replay.tensors if replay is not None else {}

    def begin(self, generator: torch.Generator, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the latent chains, remember their ends, and decode them."""
        with torch.no_grad():
            codes = self.fresh(generator, rows)
        metrics: dict[str, Tensor] = {}
        ages = torch.zeros(len(rows), device=codes.device)
        if self.replay is not None:
            codes, ages = self.replay.draw(generator, codes, self.restart)
            metrics["replay_age"] = ages.mean()
        if self.steps:
            codes, info = self.latent_chain(generator, codes, self.steps)
            metrics |= {"latent_drift": info.drift.mean(), "latent_noise": info.noise.mean()}
        if self.replay is not None:
            self.replay.push(codes, ages + 1)
        with torch.no_grad():
            return self.decode(codes), metrics

    def end(self, positions: Tensor) -> None:
        """Nothing: the buffer holds codes."""

    def latent_chain(self, generator: torch.Generator, codes: Tensor, steps: int) -> tuple[Tensor, Info]:
        """Run the chain on H(z) = E(dec(z)) from ``codes`` ``(n, k)``."""
        state, info = run(langevin.step, generator, codes, lambda z: self.energy(self.decode(z)), self.kernel, steps)
        return state.position, info
