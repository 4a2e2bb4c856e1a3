"""Training an energy against its own samples: what NAE and IGEBM share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offmanifold.data import outliers
from offmanifold.detectors.chains import Chain
from offmanifold.measures.detection import auroc
from offmanifold.sampling.chain import Energy
from offmanifold.training.phases import Judge, Metrics, Optimizer, ParameterGroup, Phase, Update

# As many held-out rows are watched, and as many synthetic outliers of each family.
WATCHED = 512
# What so many rows can tell of an AUROC near 1 (its standard error at .999 is .0006).
DECIMALS = 3


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
    temperature: Callable[[], Tensor] | None = None,
) -> Phase:
    """Return the phase that lowers the energy of data and raises that of samples (P3, Eq. 12).

    Per row (E(x⁺) − E(x⁻))/T + α⁻ E(x⁻)² + α⁺ E(x⁺)² + the weights' penalty. The judge is :func:`watching`.

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
    """
    latest: dict[str, Tensor] = {}

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        samples, metrics = chain.negatives(generator, rows, energy)
        positive, negative = energy(torch.cat([rows, samples])).chunk(2)
        difference = positive - negative
        values = difference if temperature is None else difference / temperature()
        values = values + negative_penalty * negative.square() + positive_penalty * positive.square()
        if weight_penalty is not None:
            values = values + weight_penalty()
        latest["samples"] = samples.detach()
        metrics |= {"positive_energy": positive.detach().mean(), "negative_energy": negative.detach().mean()}
        if temperature is not None:
            metrics["temperature"] = temperature().detach()
        return values, metrics

    modules = [parameter for group in groups for parameter in group.parameters]
    return Phase(
        name,
        (Update(groups, loss, optimizer),),
        steps,
        batch_size,
        keep="best" if watch else "last",
        judge=watching(energy, watch, lambda: latest["samples"], modules),
        average=average,
        rollbacks=3,
        memory=chain.start.tensors,
    )


def watching(
    energy: Energy, families: Sequence[str], samples: Callable[[], Tensor], weights: Sequence[nn.Parameter]
) -> Judge:
    """Return the judge of contrastive training.

    It keeps the weights whose AUROC, averaged over families of synthetic outliers made from held-out normal rows, is
    highest (without families, the last ones), to the third decimal: of equals the later are kept, so that families
    which are easy from the start do not end training at its start. The loss itself, a difference of two energies that
    both move, says nothing. Recorded are the AUROC of each family, the gap between the last negatives' energy and the
    held-out rows', the share of negatives below the held-out rows' median, and the weights' norm.
    """

    def energies(rows: Tensor) -> Tensor:
        return torch.cat([energy(part) for part in torch.split(rows, 128)]).double().cpu()

    def judge(held_out: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
        rows = held_out[:WATCHED]
        normal = energies(rows)
        if not bool(torch.isfinite(normal).all()):
            return float("nan"), {}
        record = {}
        for family in families:
            odd = energies(outliers.make(family, rows, generator))
            record[f"auroc/{family}"] = auroc(-normal.numpy(), -odd.nan_to_num(torch.inf).numpy()).value
        last = energies(samples())  # of the weights that are judged
        norm = torch.stack([parameter.detach().square().sum() for parameter in weights]).sum().sqrt()
        missed = round(1 - sum(record.values()) / len(record), DECIMALS) if record else 0.0
        return missed, record | {
            "held_out_energy": float(normal.mean()),
            "energy_gap": float(last.mean() - normal.mean()),
            "negatives_below_median": float((last < normal.median()).double().mean()),
            "weight_norm": float(norm),
        }

    return judge


def sum_of_squares(module: nn.Module) -> Callable[[], Tensor]:
    """Return Σ p² over a module's parameters, biases too (P3, appendix D.3)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return lambda: torch.stack([parameter.square().sum() for parameter in parameters]).sum()
