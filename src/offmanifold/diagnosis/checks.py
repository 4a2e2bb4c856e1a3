"""The checks of an examination: each is one function of the patient, with one number and one sentence of advice.

Those of what a model's file records are in ``recorded.py``; these here look at how it takes normal rows.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import ks_2samp
from sklearn.base import clone

from offmanifold.calibration import p_of_alarms, p_values, smallest_rate, threshold
from offmanifold.data import outliers
from offmanifold.detectors.base import OutlierDetector
from offmanifold.diagnosis.findings import Finding, Grade, graded, other_than, to_json
from offmanifold.diagnosis.latent_space import latents, manifold
from offmanifold.diagnosis.patient import COPIES, FEWEST, Patient, among
from offmanifold.diagnosis.recorded import scaling, training
from offmanifold.measures.detection import auroc, proportion
from offmanifold.measures.estimates import Estimate, rank_correlation
from offmanifold.training.loop import TrainingDiverged

# Attack: starts, steps, and the first step's length: in standard deviations, and in grey levels for pixels in [0, 1].
STARTS, STEPS, STEP = 64, 60, 0.1
PIXEL_STEP = 0.02
# Refits learn from so large a share of the reference, and should agree as well as this.
REFITTED, STEADY = 0.8, 0.5
# A score that goes with complexity so much measures little else. In the zoo's images (digits, MNIST, Fashion-MNIST) no
# honest detector is above 0.57; VAEs of Fashion-MNIST with a Bernoulli likelihood, which find MNIST more normal than
# what they learned (P1), are at 0.86.
COMPLEX = {"warn": 0.6, "fail": 0.7}
# How many parts of a row are taken away, one at a time, and draws of a bootstrap.
PARTS, DRAWS = 16, 200


class Check(NamedTuple):
    """A check.

    Attributes
    ----------
    name, question : str
    needs_rows : bool
    run : Patient → Finding
    needs_new_rows : bool
        Rows, and such that the detector was not calibrated with.
    of_images : bool
        Only: of tables it says so, without rows and whatever is left of the budget.
    takes : detector → seconds
        What it will take, where that is known to be long: it is not begun unless as much is left of the budget.
    """

    name: str
    question: str
    needs_rows: bool
    run: Callable[[Patient], Finding]
    needs_new_rows: bool = False
    of_images: bool = False
    takes: Callable[[OutlierDetector], float] = lambda detector: 0.0


def calibration(patient: Patient) -> Finding:
    """Are p-values of fresh normal rows uniform, so that the false-alarm rate holds?"""
    detector = patient.detector
    known = detector.calibration_scores_
    scores = patient.scores_as_given
    # Fewer calibration rows fluctuate as well: both tests are of two samples.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # many rows have the asymptotic law instead
        too_small, too_large = (
            float(ks_2samp(scores, known, alternative=alternative).pvalue) for alternative in ("greater", "less")
        )
    rate, count = detector.false_alarm_rate, int((p_values(known, scores) <= detector.false_alarm_rate).sum())
    alarms = proportion(count, len(scores))
    excess = p_of_alarms(count, len(scores), len(known), rate)
    details: dict[str, Any] = {
        "asked": rate, "alarms": alarms.to_json(), "p_of_so_many_alarms": excess, "p_stranger": too_small,
        "p_more_normal": too_large, "smallest_rate": smallest_rate(len(known)),
    }  # fmt: skip
    told = (
        f"{alarms.value:.1%} false alarms [{alarms.low:.1%}, {alarms.high:.1%}] where {100 * rate:.3g}% were asked for."
    )
    advice = ""
    grade: Grade = "fine"
    if min(excess, too_small) < 0.001:
        grade = "fail" if alarms.value > 1.5 * rate else "warn"
        where = "" if patient.comparison is None else ", ".join(patient.comparison.moved[:3])
        told += " These rows are stranger than those of calibration" + (f": {where} have moved." if where else ".")
        advice = "Fit again with rows as they come now, or find out what changed."
    elif too_large < 0.001:
        grade = "warn"
        told += " These rows look more normal than those of calibration: were they trained on?"
        advice = "Give rows that the model was not trained on."
    elif details["smallest_rate"] > rate:
        grade = "warn"
        told += f" {len(known)} calibration rows cannot promise that rate."
        advice = "Give more rows, or raise false_alarm_rate."
    return Finding("calibration", grade, told, alarms, "false alarms", advice, details)


def drift(patient: Patient) -> Finding:
    """Do these rows come from where the training rows came from?"""
    found = patient.comparison
    if found is None:
        return Finding("drift", "not applicable", "The model's file does not say what its training rows were like.")
    size, details = found.shift.size, {"p_value": found.shift.p_value, "moved": found.moved}
    if not found.certain:
        return Finding("drift", "fine", found.told, size, "standard deviations", details=details)
    told, where = found.told.removesuffix("."), ", ".join(found.moved[:3])
    return Finding(
        "drift", "warn", f"{told}{': ' if where else ''}{where}.", size, "standard deviations",
        "Find out what changed, or whether outliers were among the training rows that are not among these.", details,
    )  # fmt: skip


def red_team(patient: Patient) -> Finding:
    """Are synthetic outliers, made from normal rows alone, told from normal rows – as well as by plain methods?"""
    made = {}
    for family in outliers.families("image" if patient.is_image else "table"):
        odd = patient.made(family)
        # A family may leave rows as they are (a constant image, blurred), or make others (one column, permuted).
        odd = odd[~among(odd, patient.normal)]
        if len(odd) >= FEWEST // 4:
            made[family] = odd
    if not made:
        return Finding("red team", "not applicable", "All rows are alike: no family makes anything else of them.")
    table = patient.beside_plain(made)
    means = {name: float(np.mean([row[name].value for row in table.values()])) for name in ("detector", "kNN", "PCA")}
    details = {"families": to_json(table), "means": means}
    # Families share their normal rows: the mean of the ends is an interval of their mean that is wide enough.
    own = [row["detector"] for row in table.values()]
    number = Estimate(*(float(np.mean([getattr(one, end) for one in own])) for end in ("value", "low", "high")))
    missed = sorted(table, key=lambda family: table[family]["detector"].value)
    missed = [
        family
        for family in missed
        if table[family]["detector"].value < 0.6 < 0.7 < max(table[family][name].value for name in ("kNN", "PCA"))
    ]
    told = f"Mean AUROC {means['detector']:.2f} against {len(table)} families of synthetic outliers"
    told += f" (nearest neighbours {means['kNN']:.2f}, principal components {means['PCA']:.2f})."
    if missed:
        told += f" They see what it does not: {', '.join(missed[:4])}."
    grade = graded(means["detector"], warn=0.75, fail=0.6)
    advice = ""
    if means["detector"] < means["kNN"] - 0.05:
        grade = "fail" if means["detector"] < means["kNN"] - 0.15 or grade == "fail" else "warn"
        advice = "Nearest neighbours see more: train for longer, try another detector, or use them instead."
    elif grade != "fine":
        plain = (
            "principal components see more" if means["PCA"] > means["detector"] + 0.05 else "plain methods see no more"
        )
        advice = f"Try another detector, or more rows; {plain} here."
    return Finding("red team", grade, told, number, "mean AUROC over families", advice, details)


def agreement(patient: Patient) -> Finding:
    """Does it find the same normal rows unusual as nearest neighbours do?"""
    # A copy of a row of the reference lies at distance 0, whatever it is like.
    new = ~among(patient.normal, patient.reference)
    copies = f" {(~new).sum():,} of {len(new):,} are copies of others, and left out." if not new.all() else ""
    told = f"There is nothing to rank: rows, or their scores, are alike.{copies}"
    nothing = Finding("agreement", "not applicable", told)
    if new.sum() < FEWEST // 2:
        return nothing
    scores, neighbours = patient.scores[new], patient.neighbours.score_samples(patient.normal[new])
    if not (np.ptp(scores) and np.ptp(neighbours)):
        return nothing
    number = rank_correlation(scores, neighbours)
    told = f"Rank correlation with nearest neighbours' scores of normal rows: {number.value:+.2f}.{copies}"
    grade = graded(number.value, warn=0.3, fail=0.0)
    advice = "" if grade == "fine" else "Look at rows on which both disagree; use neighbours beside it."
    return Finding("agreement", grade, told, number, "rank correlation", advice)


def identity(patient: Patient) -> Finding:
    """Is a step off the data noticed more than an equal step along them, or does the model copy whatever comes?"""
    towards = (patient.own_nearest[1] - patient.normal) * patient.steppable
    # A row that has an equal in the reference has no direction along the data.
    kept = np.abs(towards).reshape(len(towards), -1).max(1) > 0
    if kept.sum() < FEWEST // 2 or patient.steppable.sum() == 1:
        return Finding("identity", "not applicable", "Rows repeat, or there is one column: no direction leads off.")
    normal, towards = patient.normal[kept], towards[kept]
    distances = _lengths(towards)
    random = np.random.default_rng(patient.seed).normal(size=normal.shape) * patient.steppable
    shape = (-1, *[1] * (normal.ndim - 1))
    off = _within(patient, normal + random * (distances / _lengths(random)).reshape(shape))
    # Pixels end at black and white, so a step may have become shorter: the others get its length.
    lengths = _lengths(off - normal)
    another = np.roll(normal, 1, 0) - normal
    directions = {"towards the nearest": towards, "away from it": -towards, "to another": another * patient.steppable}
    moved = {"at random": off} | {
        name: _within(patient, normal + steps * (lengths / _lengths(steps)).reshape(shape))
        for name, steps in directions.items()
    }
    drops = {name: patient.scores[kept] - patient.score(rows.astype(np.float32)) for name, rows in moved.items()}
    costs = {name: float(np.median(drop / _lengths(moved[name] - normal))) for name, drop in drops.items()}
    found = auroc(-drops["towards the nearest"], -drops["at random"])
    grade = graded(found.value, warn=0.6, fail=0.5)
    told = (
        f"A random step costs more than a step of the same length to the nearest normal row in {found.value:.0%} of "
        "comparisons."
    )
    other = other_than(patient.detector.key)
    advice = "" if grade == "fine" else f"Use fewer latents, noise in training (AE's noise), or {other}."
    details = {"cost_of_a_step": costs, "unit": f"{patient.detector.score_unit} a standard deviation"}
    return Finding("identity", grade, told, found, "share of comparisons", advice, details)


def _within(patient: Patient, rows: Any) -> Any:
    """Return rows whose pixels, if they have any, lie between black and white."""
    return rows.clip(0, 1) if patient.is_image else rows


def _lengths(rows: Any) -> Any:
    return np.maximum(np.linalg.norm(rows.reshape(len(rows), -1), axis=1), 1e-12)


def complexity(patient: Patient) -> Finding:
    """Does the score measure how complex an image is rather than whether it belongs?"""
    if not patient.is_image:
        return Finding("complexity", "not applicable", "It is asked of images.")
    pixels = np.round(patient.normal * 255).astype(np.uint8)
    sizes = [len(zlib.compress(image.tobytes(), 9)) for image in pixels]
    number = rank_correlation(sizes, patient.scores)
    neighbours = rank_correlation(sizes, patient.neighbours.score_samples(patient.normal)).value
    value = number.value
    grade = graded(abs(value), **COMPLEX)
    middle = np.median(patient.scores)
    simple = {name: float((patient.score(patient.made(name)) > middle).mean()) for name in ("constant", "blurred")}
    told = (
        f"Rank correlation of the score with the compressed size of normal images: {value:+.2f} (nearest neighbours' "
        f"{neighbours:+.2f}). Of constant images "
        f"{simple['constant']:.0%} look more normal than half of the normal ones do, of blurred "
        f"{simple['blurred']:.0%}."
    )
    advice = ""
    if grade != "fine":
        passing, shown = ("Complex", "noise") if value > 0 else ("Simple", "constant images")
        advice = f"{passing} images will pass as normal: see the red team's {shown}."
    elif max(simple.values()) > 0.5:
        grade, advice = "warn", f"Images that are too simple pass as normal: use {other_than(patient.detector.key)}."
    details = {"simple": simple, "neighbours": neighbours}
    return Finding("complexity", grade, told, number, "rank correlation", advice, details)


def attack(patient: Patient) -> Finding:
    """Can rows be found that the model calls normal, far from every normal row?"""
    if patient.reach is None:
        return Finding("attack", "not applicable", COPIES)
    chosen = np.random.default_rng(patient.seed).permutation(len(patient.normal))[:STARTS]
    families = ("noise", "mixed") if patient.is_image else ("scattered", "exchanged")
    halves = np.array_split(chosen, len(families))
    starts = np.concatenate([patient.made(family)[half] for family, half in zip(families, halves, strict=True)])
    rows = patient.prepared(starts)
    for step in range(STEPS):
        slope = patient.slope(rows)
        if slope is None:
            return Finding("attack", "not applicable", "The detector's energy has no gradient.")
        length = (PIXEL_STEP if patient.is_image else STEP) * (1 - step / STEPS)
        rows = rows - length * patient.units * slope.sign()
        if patient.is_image:
            rows = rows.clamp(0, 1)
    ends = patient.from_prepared(rows)
    fooled = patient.far(ends) & (patient.score(ends) > np.median(patient.scores))
    number = proportion(int(fooled.sum()), len(fooled))
    grade = graded(number.value, warn=0.3, fail=0.9)
    told = f"{number.value:.0%} of {len(ends)} searches ended on rows that score as normal, far from every normal one."
    advice = "" if grade == "fine" else f"Whoever wants to pass will: use {other_than(patient.detector.key)}."
    return Finding("attack", grade, told, number, "share of searches", advice)


def stability(patient: Patient) -> Finding:
    """Does one column, or one patch of an image, decide everything? And the choice of calibration rows?"""
    parts = _parts(patient)
    if len(parts) < 2:
        return Finding("stability", "not applicable", "There is one column alone.")
    rng = np.random.default_rng(patient.seed)
    other = patient.normal[rng.permutation(len(patient.normal))]
    exchanged = [patient.score(np.where(mask, other, patient.normal)) for mask in parts.values()]
    reactions = np.abs(np.array(exchanged) - patient.scores)

    def shares(columns: Any) -> Any:
        medians = np.median(reactions[:, columns], axis=1)
        return medians / max(medians.sum(), np.finfo(float).tiny)

    n = len(patient.normal)
    value = shares(slice(None))
    if not value.any():
        return Finding("stability", "not applicable", "Rows, or their scores, are alike: no part moves a score.")
    worst = int(value.argmax())
    draws = [shares(rng.integers(n, size=n))[worst] for _ in range(DRAWS)]
    number = Estimate(float(value[worst]), *(float(end) for end in np.quantile(draws, [0.025, 0.975])))
    name = list(parts)[worst]
    grade = graded(number.value, warn=0.7, fail=0.9)
    order = {part: rank_correlation(own, patient.scores).value for part, own in zip(parts, exchanged, strict=True)}
    changed = _decisions_that_change(patient, rng)
    told = (
        f"Of how far scores move when one part is another row's, {name} has a share of {number.value:.0%}. Another "
        f"draw of the calibration rows would change {changed:.1%} of the decisions."
    )
    advice = "" if grade == "fine" else f"Look at {name}: its scale, or outliers in training, may drown the others."
    details = {
        "shares": dict(zip(parts, value.tolist(), strict=True)), "order_kept": order, "decisions_that_change": changed,
    }  # fmt: skip
    return Finding("stability", grade, told, number, "share of the reaction", advice, details)


def _decisions_that_change(patient: Patient, rng: np.random.Generator) -> float:
    """Return how many of the normal rows are judged otherwise, on average, by a bootstrap of the calibration rows."""
    detector = patient.detector
    known, scores = detector.calibration_scores_, patient.scores_as_given
    changed = [
        (scores < threshold(rng.choice(known, len(known)), detector.false_alarm_rate)) != (scores < detector.offset_)
        for _ in range(DRAWS)
    ]
    return float(np.mean(changed))


def _parts(patient: Patient) -> Mapping[str, Any]:
    """Return masks of columns, of up to 16 groups of neighbouring ones, or of patches, by name."""
    shape = patient.normal.shape[1:]
    if not patient.is_image:
        names = patient.detector.spec_.names
        groups = np.array_split(np.arange(len(names)), min(len(names), PARTS))
        return {
            names[group[0]] if len(group) == 1 else f"one of {names[group[0]]} to {names[group[-1]]}": np.isin(
                patient.column_of, group
            )
            for group in groups
        }
    rows, columns = (np.arange(size) * 4 // size for size in shape[1:])
    return {
        f"patch {i + 1}, {j + 1} of 4 × 4": (rows[:, None] == i) & (columns == j) for i in range(4) for j in range(4)
    }


def _refits_take(detector: OutlierDetector) -> float:
    return 2 * detector.training_seconds


def refits(patient: Patient) -> Finding:
    """Would another fit, on other rows of the same kind, say the same?

    Two new detectors of the same settings learn from two random parts of the reference. That says nothing about the
    weights at hand, so it never fails, and the combination does not read it.
    """
    detector = patient.detector
    settings, spec = detector.settings_, detector.spec_
    labels = settings.get("labels", {})
    if "given" in settings.get("negatives", {}) or labels.get("classes") or labels.get("kind") == "continuous":
        return Finding("refits", "not applicable", "It learned from more than normal rows, and that is not at hand.")
    rng = np.random.default_rng(patient.seed)
    reference = patient.rows[: len(patient.reference)]
    kinds = None if spec.details is None else {column.name: column.kind for column in spec.details}
    scores = []
    for seed in (patient.seed, patient.seed + 1):
        rows = spec.present(reference[rng.permutation(len(reference))[: round(REFITTED * len(reference))]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # so few rows have much to warn of
            try:
                again = clone(detector).set_params(random_state=seed, verbose=False).fit(rows, columns=kinds)
            except (ValueError, TrainingDiverged) as error:
                return Finding("refits", "not applicable", f"No other fit could be made of these rows: {error}")
        scores.append(again.score_samples(patient.users(patient.normal)))
    if not all(np.ptp(own) for own in scores):
        return Finding("refits", "not applicable", "There is nothing to rank: rows, or their scores, are alike.")
    number = rank_correlation(*scores)
    told = f"Rank correlation of two refits' scores of normal rows: {number.value:+.2f}."
    grade: Grade = "fine" if number.value >= STEADY else "warn"
    advice = "" if grade == "fine" else "What it says depends on chance: give more rows, or use a smaller network."
    return Finding("refits", grade, told, number, "rank correlation", advice)


CHECKS = (
    Check("training", "Did training go well?", False, training),
    Check("latents", "What are its latents used for?", False, latents),
    Check("scaling", "Do all columns count?", False, scaling),
    Check("calibration", "Does its false-alarm rate hold?", True, calibration, needs_new_rows=True),
    Check("drift", "Are these rows like those it learned from?", True, drift, needs_new_rows=True),
    Check("red team", "Does it see synthetic outliers?", True, red_team),
    Check("agreement", "Does it agree with neighbours?", True, agreement),
    Check("identity", "Does it copy whatever comes?", True, identity),
    Check("stability", "Does one part decide everything?", True, stability),
    Check("complexity", "Does it measure complexity alone?", True, complexity, of_images=True),
    Check("attack", "Can it be fooled?", True, attack),
    Check("manifold", "Is what it makes up near the data?", True, manifold),
    Check("refits", "Would another fit say the same?", True, refits, takes=_refits_take),
)
