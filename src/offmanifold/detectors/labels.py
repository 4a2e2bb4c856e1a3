"""Partly missing labels of rows: what they are, and what a network is told of them (P2 §1, Eq. 3)."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

# Gumbel-softmax, P2 appendix J.
TEMPERATURE = 2.2
# A class that no labelled row of training has keeps this many rows' worth of prior probability.
PSEUDO_COUNT = 1.0


@dataclasses.dataclass(frozen=True)
class Labels:
    """What labels are.

    Attributes
    ----------
    kind : {"discrete", "continuous"}
    classes : tuple of str, int or float
        In order; empty for continuous labels.
    frequencies : tuple of float
        p(y) of each class, from the labelled training rows with one pseudo-count a class.
    mean, scale : float
        Of continuous labels: y is standardised by them, and its prior is N(0, 1).
    """

    kind: str
    classes: tuple[Any, ...] = ()
    frequencies: tuple[float, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many numbers a label is for a decoder."""
        return len(self.classes) if self.kind == "discrete" else 1

    @property
    def parameters(self) -> int:
        """How many numbers q(y | x) has: logits, or mean and log standard deviation."""
        return len(self.classes) if self.kind == "discrete" else 2

    @classmethod
    def learn(cls, y: npt.NDArray[Any], kind: str, training: npt.NDArray[np.intp]) -> Labels:
        """Learn from labels ``(n,)``: what classes there are from all, how frequent they are from training rows."""
        known = y[training][~missing(y[training])]
        if kind == "continuous":
            values = known.astype(np.float64)
            scale = float(values.std()) if len(values) else 1.0
            return cls(kind, mean=float(values.mean()) if len(values) else 0.0, scale=scale or 1.0)
        classes = tuple(value.item() if hasattr(value, "item") else value for value in np.unique(y[~missing(y)]))
        counts = np.array([(known == value).sum() for value in classes]) + PSEUDO_COUNT
        return cls(kind, classes, tuple((counts / counts.sum()).tolist()))

    def encode(self, y: npt.NDArray[Any]) -> Tensor:
        """Return ``(n, width + 1)``: one-hot classes or standardised values, and whether the label is known."""
        known = ~missing(y)
        told = torch.zeros(len(y), self.width + 1)
        told[:, -1] = torch.from_numpy(known.astype(np.float32))
        if self.kind == "continuous":
            values = (y[known].astype(np.float64) - self.mean) / self.scale
            told[torch.from_numpy(known), 0] = torch.from_numpy(values.astype(np.float32))
            return told
        for i, value in enumerate(self.classes):
            told[torch.from_numpy(np.asarray(y == value)), i] = 1
        return told

    def one(self, y: Any, n: int) -> Tensor:
        """Return one label for ``n`` rows, as the decoder takes it.

        Raises
        ------
        ValueError
            For a class that training did not see, for what is no finite number where labels are, and for another
            shape.
        """
        values = np.asarray(y)
        if values.shape not in ((), (n,)):
            raise ValueError(f"y must be one label, or one for each of {n} rows; got shape {values.shape}.")
        values = np.broadcast_to(values, n)
        if self.kind == "continuous":
            if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
                raise ValueError(f"y must be a finite number, or one for each row; got {y!r}.")
            return torch.from_numpy(((values - self.mean) / self.scale).astype(np.float32))[:, None]
        unseen = sorted({repr(value) for value in values.tolist() if value not in self.classes})
        if unseen:
            known = ", ".join(map(repr, self.classes))
            raise ValueError(f"y={', '.join(unseen)}: training saw no such label. It saw {known}.")
        places = [self.classes.index(value) for value in values.tolist()]
        return torch.eye(self.width)[places]

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` turns back."""
        return dataclasses.asdict(self) | {"classes": list(self.classes), "frequencies": list(self.frequencies)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Labels:
        """Rebuild from a model file."""
        return cls(**values | {"classes": tuple(values["classes"]), "frequencies": tuple(values["frequencies"])})


def read(y: Any) -> npt.NDArray[Any]:
    """Return labels of any kind as whole numbers, float64, or text with None; those missing are −1, NaN and None.

    Missing are −1, NaN, None and pandas' NA; in text "-1" and "nan" too, which is what NumPy makes of them there.

    Raises
    ------
    ValueError
        For labels that are neither text, numbers nor booleans, or text and numbers at once; for infinite ones.
    """
    # Lists go through objects: NumPy would make text of numbers that stand beside it.
    if isinstance(y, str | Mapping) or not (isinstance(y, Iterable) or hasattr(y, "__array__")):
        raise ValueError(f"y must hold a label for each row; got {type(y).__name__}.")
    y = y.detach() if isinstance(y, Tensor) else y
    values = np.asarray(y if hasattr(y, "__array__") else np.array(list(y), dtype=object))
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind in "iu":
        return values
    if values.dtype.kind in "mMc":
        raise ValueError(f"y must hold text, numbers or booleans; got {values.dtype}.")
    if values.ndim != 1:
        return values  # refused for its shape
    if values.dtype.kind != "f":
        each = [None if _absent(value) else value for value in values.tolist()]
        known = [value for value in each if value is not None]
        words = [value for value in known if isinstance(value, str)]
        if len(words) == len(known):
            text = np.empty(len(each), dtype=object)
            text[:] = each
            return text
        odd = next((value for value in known if not isinstance(value, numbers.Real | np.bool_ | str)), None)
        if odd is not None:
            raise ValueError(f"y must hold text, numbers or booleans; got {odd!r}, of type {type(odd).__name__}.")
        if words:
            number = next(value for value in known if not isinstance(value, str))
            raise ValueError(f"y holds both text and numbers, such as {words[0]!r} and {number!r}.")
        if all(isinstance(value, numbers.Integral | np.bool_) for value in known):
            return np.array([-1 if value is None else int(value) for value in each], dtype=np.int64)
        values = np.array([math.nan if value is None else float(value) for value in each])
    if np.isinf(values).any():
        raise ValueError("y holds infinite labels. Missing ones are NaN.")
    return values.astype(np.float64)


def _absent(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # which equal nothing, not even with a bool
        return True
    return value in (-1, "-1", "nan") or value != value


def missing(y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Say of each label ``(n,)``, as :func:`read` returns them, whether it is missing."""
    if y.dtype.kind == "O":
        return np.array([value is None for value in y.tolist()], dtype=bool)
    return np.asarray(np.isnan(y) | (y == -1))


def kind_of(y: npt.NDArray[Any]) -> str:
    """Guess: text, booleans and whole numbers are classes, other numbers are continuous."""
    known = y[~missing(y)]
    if y.dtype.kind == "f" and not (known == np.round(known)).all():
        return "continuous"
    return "discrete"


class LabelPosterior:
    """q(y | x) of a batch, and its prior: draws and divergences.

    Parameters
    ----------
    labels : Labels
    encoded : (n, parameters)
        The classifier's output.
    """

    def __init__(self, labels: Labels, encoded: Tensor) -> None:
        self.labels = labels
        if labels.kind == "discrete":
            self.log_q = F.log_softmax(encoded, 1)
            self.log_p = encoded.new_tensor(labels.frequencies).log()
        else:
            self.mean, log_std = encoded.chunk(2, 1)
            self.log_std = log_std.clamp(-8, 4)

    def log_prob(self, told: Tensor) -> Tensor:
        """log q(y | x) of labels as the decoder takes them: ``(n,)`` nats, a density of the standardised label."""
        if self.labels.kind == "discrete":
            return (self.log_q * told).sum(1)
        return self._normal(told).squeeze(1)

    def _normal(self, told: Tensor) -> Tensor:
        scaled = (told - self.mean) * (-self.log_std).exp()
        return -0.5 * (scaled.square() + math.log(2 * math.pi)) - self.log_std

    def prior_log_prob(self, told: Tensor) -> Tensor:
        """log p(y): ``(n,)`` nats."""
        if self.labels.kind == "discrete":
            return (self.log_p * told).sum(1)
        return -0.5 * (told.square() + math.log(2 * math.pi)).squeeze(1)

    @property
    def kl(self) -> Tensor:
        """KL(q(y | x) ‖ p(y)): ``(n,)`` nats, in closed form."""
        if self.labels.kind == "discrete":
            return (self.log_q.exp() * (self.log_q - self.log_p)).sum(1)
        return (0.5 * ((2 * self.log_std).exp() + self.mean.square() - 1) - self.log_std).squeeze(1)

    def relaxed(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw y ``(samples, n, width)`` with a gradient, and log p(y) − log q(y | x) of the draws ``(samples, n)``.

        Classes are drawn from the Gumbel-softmax (concrete) law, under p as under q (Jang et al., 2017).
        """
        if self.labels.kind == "continuous":
            drawn = self.mean + self.log_std.exp() * self.mean.new_empty(samples, *self.mean.shape).normal_(
                generator=generator
            )
            ratio = -0.5 * (drawn.square() + math.log(2 * math.pi)) - self._normal(drawn)
            return drawn, ratio.squeeze(2)
        uniform = self.log_q.new_empty(samples, *self.log_q.shape).uniform_(generator=generator)
        gumbel = -(-uniform.clamp(1e-20, 1 - 1e-7).log()).log()
        log_y = F.log_softmax((self.log_q + gumbel) / TEMPERATURE, 2)
        return log_y.exp(), self._concrete(self.log_p, log_y) - self._concrete(self.log_q, log_y)

    @staticmethod
    def _concrete(logits: Tensor, log_y: Tensor) -> Tensor:
        """Return the concrete law's log density, without what does not depend on ``logits``."""
        classes = log_y.shape[2]
        return logits.sum(-1) - classes * torch.logsumexp(logits - TEMPERATURE * log_y, 2)
