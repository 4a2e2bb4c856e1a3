"""The replay buffer: earlier chains' ends, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offmanifold import memory, parameters


class Replay:
    """The newest ``capacity`` positions, to draw from at random with replacement; or chains that go on in their places.

    One of both: :meth:`draw` and :meth:`push`, or :meth:`going_on` and :meth:`put_back`.

    Parameters
    ----------
    capacity : int
    shape : tuple of int
        Of one position.
    device : torch.device
    dtype : torch.dtype

    Notes
    -----
    All of its state are tensors (:attr:`tensors`) that change in place, so that a checkpoint can hold them and nothing
    waits for the device.
    """

    def __init__(
        self, capacity: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        parameters.integer("capacity", capacity)
        needed, there = capacity * math.prod(shape) * dtype.itemsize, memory.installed()
        if device.type == "cpu" and needed > there:  # which it would take only by and by, as it is filled
            raise ValueError(
                f"A replay buffer of {capacity:,} positions takes {needed / 2**30:,.0f} GiB; this machine has "
                f"{there / 2**30:,.0f} GiB. Make replay_size smaller."
            )
        try:
            positions = torch.zeros(capacity, *shape, device=device, dtype=dtype)
        except RuntimeError as error:  # torch.cuda's is one, too
            raise ValueError(f"A replay buffer of {capacity:,} positions does not fit into memory.") from error
        self.tensors = {
            "positions": positions,
            "ages": torch.zeros(capacity, device=device),
            "pushed": torch.zeros((), dtype=torch.int64, device=device),
        }

    @property
    def capacity(self) -> int:
        """How many positions it holds at most."""
        return len(self.tensors["positions"])

    def draw(self, generator: torch.Generator, fresh: Tensor, restart: float) -> tuple[Tensor, Tensor]:
        """Return starts ``(n, *shape)`` and their ages ``(n,)`` in chains.

        Parameters
        ----------
        generator : torch.Generator
        fresh : (n, *shape)
            What starts anew.
        restart : float
            Share of the chains that do; all of them while the ring is empty.
        """
        parameters.real("restart", restart, minimum=0, maximum=1)
        self._check("fresh", fresh)
        n, device = len(fresh), fresh.device
        filled = self.tensors["pushed"].clamp(max=self.capacity)
        index = (torch.rand(n, generator=generator, device=device, dtype=torch.float64) * filled).long()
        anew = (torch.rand(n, generator=generator, device=device) < restart) | (filled == 0)
        return self._or_fresh(anew, fresh, index)

    def going_on(self, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first ``n`` chains and their ages; of those that there are not yet ``fresh``."""
        self._check("fresh", fresh)
        self._check_fit(len(fresh))
        index = torch.arange(len(fresh), device=fresh.device)
        return self._or_fresh(index >= self.tensors["pushed"], fresh, index)

    def put_back(self, positions: Tensor, ages: Tensor) -> None:
        """Put the ends ``(n, *shape)`` of the first ``n`` chains where these were."""
        n = self._checked(positions, ages)
        self.tensors["positions"][:n] = positions.detach()
        self.tensors["ages"][:n] = ages
        self.tensors["pushed"].clamp_(min=n)

    def _or_fresh(self, anew: Tensor, fresh: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return what lies at ``index`` and its ages, and where it is ``anew`` what is fresh, of age 0."""
        positions, ages = self.tensors["positions"][index], self.tensors["ages"][index]
        return torch.where(anew.view(-1, *[1] * (fresh.ndim - 1)), fresh, positions), ages.masked_fill(anew, 0)

    def push(self, positions: Tensor, ages: Tensor) -> None:
        """Put chains' ends ``(n, *shape)`` in, over the oldest."""
        n = self._checked(positions, ages)
        index = (self.tensors["pushed"] + torch.arange(n, device=positions.device)) % self.capacity
        self.tensors["positions"][index] = positions.detach()
        self.tensors["ages"][index] = ages
        self.tensors["pushed"] += n

    def _checked(self, positions: Tensor, ages: Tensor) -> int:
        """Return how many ends there are, or refuse them."""
        self._check("positions", positions)
        n = len(positions)
        if ages.shape != (n,) or ages.dtype != self.tensors["ages"].dtype:
            raise ValueError(
                f"ages must be ({n},) of {self.tensors['ages'].dtype}, one a position; got {tuple(ages.shape)} of "
                f"{ages.dtype}."
            )
        self._check_fit(n)
        return n

    def _check_fit(self, n: int) -> None:
        if n > self.capacity:
            raise ValueError(f"{n} positions do not fit into a replay buffer of {self.capacity}.")

    def _check(self, name: str, positions: Tensor) -> None:
        """Refuse positions of another shape or type: assigned, they would be broadcast or rounded."""
        own = self.tensors["positions"]
        if positions.shape[1:] != own.shape[1:] or positions.dtype != own.dtype:
            raise ValueError(
                f"{name} must be (n, {', '.join(map(str, own.shape[1:]))}) of {own.dtype}; got "
                f"{tuple(positions.shape)} of {positions.dtype}."
            )
