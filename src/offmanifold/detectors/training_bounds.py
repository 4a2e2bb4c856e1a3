"""What variational autoencoders raise in training, and how long their encoders are trained alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offmanifold import parameters
from offmanifold.detectors.configured import Settings

BOUNDS = ("elbo", "iwae")
IWAE_SAMPLES = 10
# Steps of the encoder alone before one of both, at most.
MOST_REPEATS = 100


def bound_settings(bound: str, training_samples: int | str, lagging: Sequence[float] | None) -> Settings:
    """Check ``bound``, ``training_samples`` and ``lagging``, and resolve "auto"."""
    parameters.choice("bound", bound, BOUNDS)
    if training_samples == "auto":
        training_samples = 1 if bound == "elbo" else IWAE_SAMPLES
    return {
        "bound": bound,
        "training_samples": parameters.integer("training_samples", training_samples),
        "lagging": None if lagging is None else lagging_settings(lagging),
    }


def lagging_settings(lagging: Sequence[float]) -> list[float]:
    """Check (T, R)."""
    if isinstance(lagging, str) or not isinstance(lagging, Sequence) or len(lagging) != 2:
        raise parameters.InvalidParameter(f"lagging must be (T, R), such as (0.1, 10), or None; got {lagging!r}.")
    threshold = parameters.real("lagging[0]", lagging[0], minimum=0)
    repeats = parameters.integer("lagging[1]", lagging[1])
    if 2 * repeats > MOST_REPEATS:
        raise parameters.InvalidParameter(f"lagging[1] must be at most {MOST_REPEATS // 2}; got {repeats}.")
    return [threshold, repeats]


def settled(threshold: float, repeats: int, dimensions: float) -> Callable[[Sequence[float]], bool]:
    """Return what says of the losses so far, nats a dimension, whether their means over ``repeats`` still fall."""

    def enough(losses: Sequence[float]) -> bool:
        if len(losses) < 2 * repeats or len(losses) % repeats:
            return False
        before, now = losses[-2 * repeats : -repeats], losses[-repeats:]
        return (sum(before) - sum(now)) / repeats * dimensions < threshold

    return enough
