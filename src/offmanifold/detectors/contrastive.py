"""Training an energy against its own samples: what NAE and IGEBM share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn

from offmanifold.data import outliers
from offmanifold.data.inputs import evenly
from offmanifold.detectors.chains import Chain
from offmanifold.measures.detection import auroc
from offmanifold.sampling.chain import Energy
from offmanifold.training.phases import Judge, Metrics, Optimizer, ParameterGroup, Phase, Unfit, Update

# As many held-out rows are watched at most, evenly spread, and as many synthetic outliers of each family.
WATCHED_ROWS = 512
# Of fewer nothing is said: the standard error of an AUROC of .5 is .04 then.
FEWEST_WATCHED = 100
# Share of a phase's steps without better weights after which it stops (docs/defaults.md).
PATIENCE = 0.75
# What so many rows can tell of an AUROC near 1 (its standard error at .999 is .0006).
DECIMALS = 3
# A family with an AUROC below this counts as having it: otherwise nothing of the others would count.
LEAST = 0.01
# AUROC below which outliers are hardly told from data; models of digits that on-manifold starts made have .79 or more
# (docs/defaults.md).
HARDLY_TOLD = 0.6
# An image model that answers in black, as saturated ones do, has 1.5 times the energy of the mean image or more on
# MNIST, Fashion-MNIST and CIFAR-10.
LOST = 1.25
# Of images that are all alike nothing does better than the mean: up to here (rms .1) an energy is no failure.
SLIGHT = 0.01


def contrastive_phase(
    name: str,
    *,
    energy: Energy,
    chain: Chain[Any],
    groups: tuple[ParameterGroup, ...],
    optimizer: Optimizer,
    steps: int,
    batch_size: int,
    average: float,
    watch: Sequence[str],
    negative_penalty: float,
    positive_penalty: float = 0.0,
    weight_penalty: Callable[[], Tensor] | None = None,
    row_penalty: Callable[[Tensor], Tensor] | None = None,
    temperature: Callable[[], Tensor] | None = None,
    updates_per_chain: int = 1,
    of_the_mean: Energy | None = None,
    noisy: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Phase:
    """Return the phase that lowers the energy of data and raises that of samples (P3, Eq. 12).

    Per row (E(x⁺) − E(x⁻))/T + α⁻ E(x⁻)² + α⁺ E(x⁺)² + penalties. The judge is :func:`watching`.

    Parameters
    ----------
    energy : callable
        ``(n, *shape) → (n,)``.
    chain : Chain
    groups, optimizer, steps, batch_size, average
        As in :class:`~offmanifold.training.phases.Phase`.
    watch : sequence of str
        Families of synthetic outliers.
    negative_penalty, positive_penalty : float
        α⁻ and α⁺.
    weight_penalty, temperature : callable, optional
        Return scalars with gradients.
    row_penalty : callable, optional
        Returns a penalty for each row ``(n,)`` of data.
    updates_per_chain : int
        So many updates of the weights, each on fresh rows, are made against the same samples.
    of_the_mean : callable, optional
        The energies that rows ``(n, *shape)`` would have, were each reconstructed as their mean. Training that brings
        data well above them has lost what it had: energies with a ceiling do not explode.
    noisy : callable, optional
        What is learned in the data's place, such as :func:`dequantised`.
    """
    # The samples that the updates of a step are made against.
    latest: dict[str, Tensor] = {}
    # What a batch has at the start: its energy, and what it would have were each row reconstructed as their mean. On
    # the host, where asking for them waits for nothing.
    began, apart = torch.zeros(()), torch.zeros(())

    def learned(rows: Tensor, generator: torch.Generator) -> Tensor:
        return rows if noisy is None else noisy(rows, generator)

    def draw(rows: Tensor, generator: torch.Generator) -> Metrics:
        samples, metrics = chain.negatives(generator, learned(rows, generator), energy)
        latest["samples"] = samples.detach()
        return metrics

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        rows = learned(rows, generator)
        positive, negative = energy(torch.cat([rows, latest["samples"]])).chunk(2)
        if of_the_mean is not None and not began:  # at the start, and after going back
            began.fill_(positive.detach().mean())
            apart.fill_(from_mean(of_the_mean, rows))
        difference = positive - negative
        values = difference if temperature is None else difference / temperature()
        values = values + negative_penalty * negative.square() + positive_penalty * positive.square()
        if weight_penalty is not None:
            values = values + weight_penalty()
        if row_penalty is not None:
            values = values + row_penalty(rows)
        metrics: Metrics = {
            "positive_energy": positive.detach().mean(),
            "negative_energy": negative.detach().mean(),
        }
        if temperature is not None:
            metrics["temperature"] = temperature().detach()
        return values, metrics

    def lost(rows: Tensor) -> float:
        """Return the mean energy of held-out rows from which on all is lost."""
        if of_the_mean is None:
            return math.inf
        # The more rows, the better they tell.
        far = from_mean(of_the_mean, rows) if len(rows) > batch_size else float(apart)
        return max(LOST * far, LOST * float(began), SLIGHT)

    weights = [parameter for group in groups for parameter in group.parameters]
    return Phase(
        name,
        (Update(groups, loss, optimizer, prepare=draw, repeats=updates_per_chain),),
        steps,
        batch_size,
        keep="best" if watch else "last",
        judge=watching(energy, watch, lambda: latest["samples"], weights, lost),
        patience=PATIENCE * steps,
        average=average,
        rollbacks=3,
        memory=chain.start.tensors | {"began": began, "apart": apart},
        remedy="Try a smaller learning_rate, or smaller steps of the chains.",
    )


def from_mean(of_the_mean: Energy, rows: Tensor) -> float:
    """Return the mean energy that others would have, were each reconstructed as the mean of ``rows``; of one, ∞."""
    n = len(rows)
    # Their mean is nearer to the rows that it is of than to others.
    return float(of_the_mean(rows).mean()) * (n + 1) / (n - 1) if n > 1 else math.inf


def watching(
    energy: Energy,
    families: Sequence[str],
    samples: Callable[[], Tensor],
    weights: Sequence[nn.Parameter],
    lost: Callable[[Tensor], float] = lambda rows: math.inf,
) -> Judge:
    """Return the judge of contrastive training.

    It keeps the weights whose AUROC, the geometric mean over families of synthetic outliers made from held-out normal
    rows, is highest, to the third decimal. Geometric: a family that is called normal counts for more than one that is
    told perfectly; one that leaves the rows as they are counts for nothing. Of equals the later are kept, so that
    families which are easy from the start do not end training at its start. Where three quarters of a phase's steps
    brought no better weights it ends. The loss itself, a difference of two energies that both move, says nothing.
    (Where all families leave the rows as they are, as they may a single one, all weights are equals. Without families
    the judge gives the energy of held-out rows, and the phase keeps the last weights.) Recorded are the AUROC of each
    family, the gap between the last negatives' energy and the held-out rows', the share of negatives below the held-out
    rows' median, and the weights' norm.

    Weights by which the held-out rows have a higher mean energy than ``lost`` says of them are unfit, and so are those
    whose chains ended at values that are not finite.
    """

    def energies(rows: Tensor) -> Tensor:
        return torch.cat([energy(part) for part in torch.split(rows, 128)]).double().cpu()

    def judge(held_out: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
        rows = held_out[torch.from_numpy(evenly(len(held_out), WATCHED_ROWS)).to(held_out.device)]
        ends = samples()
        if not bool(torch.isfinite(ends).all()):
            raise Unfit(
                "chains ended at values that are not finite: their step size is too large, or the learning rate"
            )
        normal = energies(rows)
        if not bool(torch.isfinite(normal).all()):
            return float("nan"), {}
        if float(normal.mean()) > lost(rows):
            raise Unfit("held-out rows are reconstructed worse than by the training rows' mean")
        record = {}
        for family in families:
            made = outliers.make(family, rows, generator)
            if torch.equal(made, rows):  # as black images are with a half erased
                continue
            odd = energies(made)
            record[f"auroc/{family}"] = auroc(-normal.numpy(), -odd.nan_to_num(torch.inf).numpy()).value
        last = energies(ends)  # of the weights that are judged
        norm = torch.stack([parameter.detach().square().sum() for parameter in weights]).sum().sqrt()
        told = [max(value, LEAST) for value in record.values()]
        equals = 0.0 if families else float(normal.mean())
        judged = round(1 - geometric_mean(told), DECIMALS) if told else equals
        return judged, record | {
            "held_out_energy": float(normal.mean()),
            "energy_gap": float(last.mean() - normal.mean()),
            "negatives_below_median": float((last < normal.median()).double().mean()),
            "weight_norm": float(norm),
        }

    return judge


def untold(summary: Mapping[str, Mapping[str, Any]], held_out: int) -> str | None:
    """Say which families of synthetic outliers the weights that were kept hardly tell from data, if any.

    Of images: columns of a table may be independent, and permuted rows then are rows like others.

    Parameters
    ----------
    summary : mapping
        A detector's ``training_summary()``.
    held_out : int
        How many rows it was judged by.
    """
    watched = list(summary.values())[-1].get("auroc_against", {}) if held_out >= FEWEST_WATCHED else {}
    found = ", ".join(f"{family} {value:.2f}" for family, value in watched.items() if value < HARDLY_TOLD)
    if not found:
        return None
    return (
        f"The model hardly tells some outliers that were made of held-out images from images (AUROC: {found}), and may "
        "miss others like them."
    )


def dequantised(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return pixels of 256 levels, k/255, spread evenly over (k to k + 1)/256, as P3 has its data."""
    return (255 * rows + torch.rand(rows.shape, generator=generator, device=rows.device)) / 256


def sum_of_squares(module: nn.Module) -> Callable[[], Tensor]:
    """Return Σ p² over a module's parameters, biases too (P3, appendix D.3)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return lambda: torch.stack([parameter.square().sum() for parameter in parameters]).sum()
