"""What the decoder's output says about a row: p(x | z), with its constants, in nats per row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offmanifold.probability.missing import filled, missing_cells, standing_in, without

GAMMAS = ("learned", "per-dimension", "closed-form", "continuation")
LOWEST_GAMMA = 1e-6
LOG_2PI = math.log(2 * math.pi)
# Nats that a cell costs a unit beyond [0, 1], where a Bernoulli likelihood is none.
EXCESS = 100.0


class Gaussian(nn.Module):
    """x | z ~ N(decoded, γ I), γ a **variance** (P0 and P4: Eq. 2).

    Parameters
    ----------
    shape : tuple of int
        One row.
    gamma : {"learned", "per-dimension", "closed-form", "continuation"} or float
        One learned variance; one for each dimension; the running mean squared error (its optimum given
        the networks); the same, but falling by at most 1 % a step; or a fixed number.
    floor : float
        The variance never falls below this.
    start : float
        Where a variance that is not fixed starts.
    sigmoid : bool
        Whether the mean is the sigmoid of what the decoder gives (images in [0, 1]).

    Notes
    -----
    What is learned is log(γ − floor), so that the gradient never vanishes at the floor.
    """

    running_error: Tensor
    momentum = 0.05
    slowest_factor = 0.99

    def __init__(
        self,
        shape: Sequence[int],
        gamma: str | float = "learned",
        *,
        floor: float = LOWEST_GAMMA,
        start: float = 1.0,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.rule = gamma if isinstance(gamma, str) else "fixed"
        self.floor = floor
        self.sigmoid = sigmoid
        value = torch.full(tuple(shape) if gamma == "per-dimension" else (), math.log(start))
        if self.rule in ("learned", "per-dimension"):
            self.log_gamma = nn.Parameter(value)
        elif self.rule in ("closed-form", "continuation"):
            self.register_buffer("log_gamma", value)
            self.register_buffer("running_error", value.exp())
        else:
            self.register_buffer("log_gamma", torch.tensor(math.log(float(gamma))))

    @property
    def log_variance(self) -> Tensor:
        """log γ, a scalar or of the row's shape."""
        if self.rule in ("learned", "per-dimension"):
            return torch.logaddexp(self.log_gamma, self.log_gamma.new_tensor(math.log(self.floor)))
        return self.log_gamma

    @property
    def gamma(self) -> Tensor:
        """The variance γ, detached."""
        return self.log_variance.detach().exp()

    @property
    def touches_floor(self) -> bool:
        """Whether any variance is within a factor of two of its floor."""
        return self.rule != "fixed" and bool((self.gamma <= 2 * self.floor).any())

    def mean(self, decoded: Tensor) -> Tensor:
        """E[x | z] ``(n, *shape)`` from the decoder's output."""
        return torch.sigmoid(decoded) if self.sigmoid else decoded

    def log_prob(self, rows: Tensor, decoded: Tensor, *, learning: float = 1.0) -> Tensor:
        """−½ [Σ (x − mean)²/γ + Σ log γ + D log 2π] over the cells seen, for each row: ``(n,)`` nats.

        In training a γ that follows the errors follows these as part ``learning`` of a step; the parts of one step add
        up to 1.
        """
        mean = self.mean(decoded)
        squared = (standing_in(rows, mean) - mean).square()
        missing = missing_cells(rows)
        if learning and self.training and self.rule in ("closed-form", "continuation"):
            seen = squared.numel() if missing is None else int((~missing).sum())
            if seen:
                self._follow(squared.detach().sum() / seen, learning)
        log_prob = self._log_prob(squared)
        if missing is not None:  # their constants, too, are left out
            log_prob = log_prob + 0.5 * (missing * (self.log_variance + LOG_2PI)).sum(1)
        return log_prob

    def _log_prob(self, squared: Tensor) -> Tensor:
        log_variance = self.log_variance
        dimensions = squared[0].numel()
        if log_variance.ndim:
            weighted = (squared * (-log_variance).exp()).flatten(1).sum(1)
            log_det = log_variance.sum()
        else:
            weighted = squared.flatten(1).sum(1) * (-log_variance).exp()
            log_det = dimensions * log_variance
        return -0.5 * (weighted + log_det + dimensions * LOG_2PI)

    def cells(self, rows: Tensor, decoded: Tensor) -> Tensor:
        """Return what each cell adds to :meth:`log_prob`: ``(n, *shape)`` nats."""
        mean = self.mean(decoded)
        squared = (standing_in(rows, mean) - mean).square()
        return without(missing_cells(rows), -0.5 * (squared * (-self.log_variance).exp() + self.log_variance + LOG_2PI))

    def _follow(self, mean_squared_error: Tensor, part: float) -> None:
        self.running_error.lerp_(mean_squared_error, 1 - (1 - self.momentum) ** part)
        gamma = self.running_error.clamp(min=self.floor)
        if self.rule == "continuation":
            gamma = torch.maximum(gamma, self.log_gamma.exp() * self.slowest_factor**part)
        self.log_gamma.copy_(gamma.log())

    def sample(self, decoded: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x ``(n, *shape)``."""
        mean = self.mean(decoded)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return mean + self.gamma.sqrt() * noise


class Bernoulli(nn.Module):
    """x | z ~ Bernoulli(sigmoid(decoded)) in every dimension; grey values count as probabilities.

    A value outside [0, 1] counts as the nearer of the two, less 100 nats for each unit that it lies beyond.
    """

    def mean(self, decoded: Tensor) -> Tensor:
        """E[x | z] ``(n, *shape)`` from the decoder's logits."""
        return torch.sigmoid(decoded)

    def log_prob(self, rows: Tensor, decoded: Tensor, *, learning: float = 1.0) -> Tensor:
        """Σ x log p + (1 − x) log(1 − p) for each row: ``(n,)`` nats; no γ follows anything."""
        return self.cells(rows, decoded).flatten(1).sum(1)

    def cells(self, rows: Tensor, decoded: Tensor) -> Tensor:
        """Return what each cell adds to :meth:`log_prob`: ``(n, *shape)`` nats."""
        known = filled(rows)
        within = known.clamp(0, 1)
        # Linear in x, the log-likelihood alone would rise without limit beyond an end that the decoder expects.
        log_prob = -F.binary_cross_entropy_with_logits(decoded, within, reduction="none")
        return without(missing_cells(rows), log_prob - EXCESS * (known - within).abs())

    def sample(self, decoded: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x in {0, 1} ``(n, *shape)``."""
        return torch.bernoulli(self.mean(decoded), generator=generator)


@dataclasses.dataclass(frozen=True)
class Block:
    """The cells of a row that one column became.

    Attributes
    ----------
    kind : {"number", "category", "boolean"}
    width : int
    surprise : float or None
        −log p of a level that training did not see, whose cell is a category's last; None where there is no such cell.
    """

    kind: str
    width: int
    surprise: float | None = None


class Mixed(nn.Module):
    """Columns of several kinds: Gaussian cells of variance γ, categorical and Bernoulli columns; nats over all.

    Rows hold prepared cells, (x − mean)/scale, of which categories and booleans are told by x. Between its levels
    (where a search passes) a category counts as the mixture of their log-probabilities.

    Parameters
    ----------
    blocks : sequence of Block
        In the order of the cells.
    mean, scale : (D,) float
        Of the preparation.
    gamma, start
        As for :class:`Gaussian`, for the numbers.
    """

    centre: Tensor
    unit: Tensor
    numeric: Tensor
    truths: Tensor
    levels: Tensor
    column: Tensor
    told: Tensor
    of_told: Tensor
    new: Tensor
    surprise: Tensor

    def __init__(
        self,
        blocks: Sequence[Block],
        mean: Sequence[float],
        scale: Sequence[float],
        gamma: str | float = "learned",
        *,
        start: float = 1.0,
    ) -> None:
        super().__init__()
        places: dict[str, list[int]] = {
            name: [] for name in ("numeric", "truths", "levels", "column", "told", "of_told", "new")
        }
        surprise: list[float] = []
        at = self.categories = 0
        for block in blocks:
            cells = list(range(at, at + block.width))
            at += block.width
            if block.kind == "number":
                places["numeric"] += cells
            elif block.kind == "boolean":
                places["truths"] += cells
            else:
                known = cells if block.surprise is None else cells[:-1]
                places["told"] += cells
                places["of_told"] += [self.categories] * len(cells)
                places["levels"] += known
                places["column"] += [self.categories] * len(known)
                if block.surprise is not None:
                    places["new"].append(cells[-1])
                    surprise.append(block.surprise)
                self.categories += 1
        for name, values in places.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)
        for name, numbers in {"centre": mean, "unit": scale, "surprise": surprise}.items():
            self.register_buffer(name, torch.tensor(list(numbers), dtype=torch.float32), persistent=False)
        numeric = places["numeric"]
        self.numbers = Gaussian((len(numeric),), gamma, start=start) if numeric else None

    def mean(self, decoded: Tensor) -> Tensor:
        """E[x | z] ``(n, D)``, prepared: of a category the probabilities of its levels."""
        raw = torch.zeros_like(decoded)
        raw[:, self.levels] = self._log_probabilities(decoded).exp()
        raw[:, self.truths] = torch.sigmoid(decoded[:, self.truths])
        found = (raw - self.centre) / self.unit
        if self.numbers is not None:
            found[:, self.numeric] = self.numbers.mean(decoded[:, self.numeric])
        return found

    def log_prob(self, rows: Tensor, decoded: Tensor, *, learning: float = 1.0) -> Tensor:
        """Σ log p over the columns seen, for each row: ``(n,)`` nats; ``learning`` as for :class:`Gaussian`."""
        found = self._discrete(rows, decoded).sum(1)
        if self.numbers is not None:
            numbers, theirs = rows[:, self.numeric], decoded[:, self.numeric]
            found = found + self.numbers.log_prob(numbers, theirs, learning=learning)
        return found

    def cells(self, rows: Tensor, decoded: Tensor) -> Tensor:
        """Return what each cell adds to :meth:`log_prob`: ``(n, D)`` nats."""
        found = self._discrete(rows, decoded)
        if self.numbers is not None:
            found[:, self.numeric] = self.numbers.cells(rows[:, self.numeric], decoded[:, self.numeric])
        return found

    def sample(self, decoded: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x ``(n, D)``, prepared."""
        raw = torch.zeros_like(decoded)
        if len(self.levels):
            # The largest of log-probabilities with Gumbel noise is a draw from them.
            uniform = torch.empty_like(decoded[:, self.levels]).uniform_(1e-9, 1, generator=generator)
            noisy = self._log_probabilities(decoded) - (-uniform.log()).log()
            largest = self._largest(noisy)[:, self.column]
            raw[:, self.levels] = (noisy == largest).to(raw.dtype)
        raw[:, self.truths] = torch.bernoulli(torch.sigmoid(decoded[:, self.truths]), generator=generator)
        found = (raw - self.centre) / self.unit
        if self.numbers is not None:
            found[:, self.numeric] = self.numbers.sample(decoded[:, self.numeric], generator)
        return found

    def _discrete(self, rows: Tensor, decoded: Tensor) -> Tensor:
        """Return what cells of categories and booleans add, 0 for numbers and where cells are missing ``(n, D)``."""
        missing = missing_cells(rows)
        raw = (filled(rows) * self.unit + self.centre).clamp(0, 1)
        found = torch.zeros_like(decoded)
        found[:, self.truths] = -F.binary_cross_entropy_with_logits(
            decoded[:, self.truths], raw[:, self.truths], reduction="none"
        )
        if self.categories:
            log_p = torch.zeros_like(decoded)
            log_p[:, self.levels] = self._log_probabilities(decoded)
            log_p[:, self.new] = -self.surprise
            told = raw[:, self.told]
            total = told.new_zeros(len(told), self.categories).index_add(1, self.of_told, told).clamp(min=1e-6)
            found[:, self.told] = told / total[:, self.of_told] * log_p[:, self.told]
        return without(missing, found)

    def _log_probabilities(self, decoded: Tensor) -> Tensor:
        """Return log softmax of each category's logits ``(n, levels of all)``."""
        logits = decoded[:, self.levels]
        largest = self._largest(logits.detach())
        sums = logits.new_zeros(len(logits), self.categories)
        sums = sums.index_add(1, self.column, (logits - largest[:, self.column]).exp())
        return logits - (largest + sums.log())[:, self.column]

    def _largest(self, values: Tensor) -> Tensor:
        """Return the largest of each category's values ``(n, categories)``."""
        low = values.new_full((len(values), self.categories), -torch.inf)
        return low.scatter_reduce(1, self.column.expand(len(values), -1), values, "amax")


Likelihood = Gaussian | Bernoulli | Mixed


def gaussian_part(likelihood: Likelihood) -> Gaussian | None:
    """Return what has a variance."""
    if isinstance(likelihood, Mixed):
        return likelihood.numbers
    return likelihood if isinstance(likelihood, Gaussian) else None
