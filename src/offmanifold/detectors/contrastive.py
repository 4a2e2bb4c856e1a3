"""Training an energy against its own samples: what NAE and IGEBM share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data import outliers
from offmanifold.measures.detection import auroc
from offmanifold.networks import choose
from offmanifold.sampling.chain import Energy, Kernel, Step, run
from offmanifold.sampling.starts import Fresh, Start
from offmanifold.training.phases import Judge, Metrics, Optimizer, ParameterGroup, Phase, Update

Range = tuple[float, float]
# As many held-out rows are watched, and as many synthetic outliers of each family.
WATCHED = 512
# P3, appendix D.3: the chain for new samples is so many times as long as in training.
SAMPLING_FACTOR = 8


@dataclasses.dataclass
class Chain:
    """How negative samples are drawn.

    Attributes
    ----------
    start : Start
    step : callable
        Adjusted or not.
    kernel : Kernel
    steps : int
    """

    start: Start
    step: Step
    kernel: Kernel
    steps: int

    def negatives(self, generator: torch.Generator, rows: Tensor, energy: Energy) -> tuple[Tensor, Metrics]:
        """Return samples of the model ``(n, *shape)``, as many as there are rows, and how the chains went."""
        begun, metrics = self.start.begin(generator, rows)
        begun = self.kernel.space.bring_back(begun)
        state, info = run(self.step, generator, begun, energy, self.kernel, self.steps)
        self.start.end(state.position)
        metrics |= {"drift": info.drift.mean(), "noise": info.noise.mean(), "acceptance": info.accepted.mean()}
        return state.position, metrics


def contrastive_phase(
    name: str,
    *,
    energy: Energy,
    chain: Chain,
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
        latest["negative"] = negative.detach()
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
        judge=watching(energy, watch, lambda: latest["negative"], modules),
        average=average,
        rollbacks=3,
        memory=chain.start.tensors,
    )


def watching(
    energy: Energy, families: Sequence[str], negative: Callable[[], Tensor], weights: Sequence[nn.Parameter]
) -> Judge:
    """Return the judge of contrastive training.

    It keeps the weights whose AUROC, averaged over families of synthetic outliers made from held-out normal rows, is
    highest (without families, the last ones); the loss itself, a difference of two energies that both move, says
    nothing. It records the AUROC of each family, the gap between the negatives' energy and the held-out rows', the
    share of negatives below the held-out rows' median, and the weights' norm.
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
        last = negative().double().cpu()
        norm = torch.stack([parameter.detach().square().sum() for parameter in weights]).sum().sqrt()
        missed = 1 - sum(record.values()) / len(record) if record else 0.0
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


# --- hyper-parameters of chains ----------------------------------------------------------------------------


def chain_settings(argument: str, value: Any, *, fewest: int) -> list[float]:
    """Check (steps, step size, noise)."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 3:
        raise TypeError(f"{argument} must be (steps, step size, noise) or 'auto'; got {value!r}.")
    steps, step_size, noise = value
    return [
        parameters.integer(f"{argument}[0]", steps, minimum=fewest),
        parameters.real(f"{argument}[1]", step_size, above=0),
        parameters.real(f"{argument}[2]", noise, minimum=0),
    ]


def chain_bounds(bounds: Range | str, table: bool) -> list[float] | None:
    """Check ``bounds``; None is for :func:`settle_bounds` to fill in."""
    if isinstance(bounds, str):
        parameters.choice("bounds", bounds, ("auto",))
        return None if table else [0.0, 1.0]
    if len(bounds) != 2:
        raise ValueError(f"bounds must be (low, high) or 'auto'; got {bounds!r}.")
    low, high = (parameters.real(f"bounds[{i}]", value) for i, value in enumerate(bounds))
    if not low < high:
        raise ValueError(f"bounds must be (low, high) with low < high; got {bounds!r}.")
    return [low, high]


def settle_bounds(rows: Tensor, settings: dict[str, Any]) -> None:
    """Where ``bounds`` is "auto" for a table: the range of the prepared training rows, at least ±4."""
    if settings["bounds"] is None:
        widest = max(4.0, float(rows.abs().max()))
        settings["bounds"] = [-widest, widest]


def families_to_watch(watch: Sequence[str] | str, kind: str) -> list[str]:
    """Check ``watch``; "auto" is every family there is for the kind of data, none keeps the last weights."""
    known = outliers.families(kind)
    if isinstance(watch, str):
        parameters.choice("watch", watch, ("auto",))
        return list(known)
    return [parameters.choice("watch", family, known) for family in watch]


def size_of_network(shape: tuple[int, ...]) -> str:
    """Return P3's network for images of 28, 32 or 64 pixels, or the general one."""
    by_size = {(28, 28): "conv28", (32, 32): "conv32", (64, 64): "conv64"}
    return by_size.get((shape[1], shape[2]), choose.for_images(shape))


def noise_within(bounds: Sequence[float], shape: tuple[int, ...], device: torch.device) -> Fresh:
    """Return what draws uniform noise ``(n, *shape)`` within the bounds."""

    def noise(generator: torch.Generator, n: int) -> Tensor:
        return torch.empty(n, *shape, device=device).uniform_(*bounds, generator=generator)

    return noise
