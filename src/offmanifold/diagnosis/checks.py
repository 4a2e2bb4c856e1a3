"""The checks of an examination: each is one function of the patient, with one number and one sentence of advice.

Those of what a model's file records are in ``recorded.py``; these here look at how it takes normal rows.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import betabinom, ks_2samp
from sklearn.base import clone

from offmanifold.calibration import p_values, smallest_rate
from offmanifold.data import outliers
from offmanifold.detectors.base import OutlierDetector
from offmanifold.diagnosis.findings import Finding, Grade, graded
from offmanifold.diagnosis.patient import Patient
from offmanifold.diagnosis.recorded import latents, scaling, training
from offmanifold.measures.detection import auroc, proportion
from offmanifold.measures.estimates import Estimate, rank_correlation
from offmanifold.training.loop import TrainingDiverged

# Below this no check on rows says anything: half of them are the reference.
FEWEST = 20
# Attack: starts, steps, and the first step's length: in standard deviations, and in grey levels for pixels in [0, 1].
STARTS, STEPS, STEP = 64, 60, 0.1
PIXEL_STEP = 0.02
# So many made-up rows may pass far from the data: of honest AEs' and VAEs' on eleven sets of rows 3 % did at most.
WIDE = 0.1
# A shift of fewer standard deviations is none worth telling, however certain it is.
LEAST_SHIFT = 0.05
# Refits learn from so large a share of the reference, and should agree as well as this.
REFITTED, STEADY = 0.8, 0.5
# How many parts of a row are taken away, one at a time.
PARTS = 16


class Check(NamedTuple):
    """A check.

    Attributes
    ----------
    name, question : str
    paper : str
        Where the failure that it looks for is described.
    needs_rows : bool
    run : Patient → Finding
    takes : detector → seconds
        What it will take, where that is known to be long: it is not begun unless as much is left of the budget.
    """

    name: str
    question: str
    paper: str
    needs_rows: bool
    run: Callable[[Patient], Finding]
    takes: Callable[[OutlierDetector], float] = lambda detector: 0.0


def calibration(patient: Patient) -> Finding:
    """Are p-values of fresh normal rows uniform, so that the false-alarm rate holds?"""
    detector = patient.detector
    known = detector.calibration_scores_
    scores = patient.scores_as_given
    # Fewer calibration rows fluctuate as well: both tests are of two samples.
    too_small, too_large = (
        float(ks_2samp(scores, known, alternative=alternative).pvalue) for alternative in ("greater", "less")
    )
    rate, count = detector.false_alarm_rate, int((p_values(known, scores) <= detector.false_alarm_rate).sum())
    alarms = proportion(count, len(scores))
    # Given the calibration rows, the false-alarm rate of exchangeable ones follows a beta law.
    allowed = math.floor(rate * (len(known) + 1) + 1e-9)
    excess = float(betabinom.sf(count - 1, len(scores), allowed, len(known) + 1 - allowed)) if allowed else 1.0
    details: dict[str, Any] = {
        "asked": rate, "alarms": alarms.to_json(), "p_of_so_many_alarms": excess, "p_stranger": too_small,
        "p_more_normal": too_large, "smallest_rate": smallest_rate(len(known)),
    }  # fmt: skip
    told = f"{alarms.value:.1%} false alarms [{alarms.low:.1%}, {alarms.high:.1%}] where {rate:.1%} were asked for."
    advice = ""
    grade: Grade = "fine"
    if min(excess, too_small) < 0.001:
        grade = "fail" if alarms.value > 1.5 * rate else "warn"
        where = ", ".join(patient.moved[:3])
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
    found = patient.shift
    if found is None:
        return Finding("drift", "not applicable", "The model's file does not say what its training rows were like.")
    details = {"p_value": found.p_value, "moved": patient.moved}
    if found.p_value >= 0.001 or found.size.value < LEAST_SHIFT:
        told = f"Means differ from those of the training rows as chance has it (p = {found.p_value:.2g})."
        return Finding("drift", "fine", told, found.size, "standard deviations", details=details)
    told = f"Means lie {found.size.value:.2f} standard deviations farther from the training rows' than chance explains"
    where = ", ".join(patient.moved[:3])
    return Finding(
        "drift", "warn", f"{told}{': ' if where else ''}{where}.", found.size, "standard deviations",
        "Find out what changed, or whether outliers were among the training rows that are not among these.", details,
    )  # fmt: skip


def red_team(patient: Patient) -> Finding:
    """Are synthetic outliers, made from normal rows alone, told from normal rows – as well as by plain methods?"""
    made = {}
    for family in outliers.families("image" if patient.is_image else "table"):
        odd = patient.made(family)
        # A family may leave some rows as they are (a constant image is constant when blurred).
        odd = odd[np.abs(odd - patient.normal).reshape(len(odd), -1).max(1) > 0]
        if len(odd) >= FEWEST // 4:
            made[family] = odd
    if not made:
        return Finding("red team", "not applicable", "All rows are alike: no family makes anything else of them.")
    table = _beside_plain(patient, made)
    means = {name: float(np.mean([row[name].value for row in table.values()])) for name in ("detector", "kNN", "PCA")}
    details = {"families": _to_json(table), "means": means}
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
        advice = "Try another detector, or more rows: plain methods do no better here."
    return Finding("red team", grade, told, number, "mean AUROC over families", advice, details)


def _beside_plain(patient: Patient, made: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Return for each family of rows the AUROC against normal ones by method."""
    plain = {"kNN": patient.neighbours.score_samples, "PCA": patient.components.score_samples}
    normal = {"detector": patient.scores, **{name: score(patient.normal) for name, score in plain.items()}}
    methods = {"detector": patient.score, **plain}
    return {
        family: {name: auroc(normal[name], score(rows)) for name, score in methods.items()}
        for family, rows in made.items()
    }


def _to_json(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {family: {name: found.to_json() for name, found in row.items()} for family, row in table.items()}


def agreement(patient: Patient) -> Finding:
    """Does it find the same normal rows unusual as nearest neighbours do?"""
    number = rank_correlation(patient.scores, patient.neighbours.score_samples(patient.normal))
    told = f"Rank correlation with nearest neighbours' scores of normal rows: {number.value:+.2f}."
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
    off = normal + random * (distances / _lengths(random)).reshape(shape)
    if patient.is_image:
        off = off.clip(0, 1)
    # Pixels end at black and white, so a step may have become shorter: both have one length.
    along = normal + towards * (_lengths(off - normal) / distances).reshape(shape)
    drops = {
        name: patient.scores[kept] - patient.score(rows.astype(np.float32))
        for name, rows in (("along", along), ("off", off))
    }
    found = auroc(-drops["along"], -drops["off"])
    grade = graded(found.value, warn=0.6, fail=0.5)
    told = (
        f"A random step costs more than a step of the same length to the nearest normal row in {found.value:.0%} of "
        "comparisons."
    )
    advice = "" if grade == "fine" else f"Use fewer latents, noise in training (AE's noise), or {_other(patient)}."
    return Finding("identity", grade, told, found, "share of comparisons", advice)


def _other(patient: Patient) -> str:
    """Name what does not have the weakness of reconstructing what it never saw."""
    return "neighbours beside it" if patient.detector.key == "nae" else "detector='nae', or neighbours beside it"


def _lengths(rows: Any) -> Any:
    return np.maximum(np.linalg.norm(rows.reshape(len(rows), -1), axis=1), 1e-12)


def complexity(patient: Patient) -> Finding:
    """Does the score measure how complex an image is rather than whether it belongs?"""
    if not patient.is_image:
        return Finding("complexity", "not applicable", "It is asked of images.")
    pixels = np.round(patient.normal * 255).astype(np.uint8)
    number = rank_correlation([len(zlib.compress(image.tobytes(), 9)) for image in pixels], patient.scores)
    value = number.value
    grade = graded(abs(value), warn=0.7, fail=0.9)
    told = f"Rank correlation of the score with the compressed size of normal images: {value:+.2f}."
    passing, shown = ("Complex", "noise") if value > 0 else ("Simple", "constant images")
    advice = "" if grade == "fine" else f"{passing} images will pass as normal: see the red team's {shown}."
    return Finding("complexity", grade, told, number, "rank correlation", advice)


def attack(patient: Patient) -> Finding:
    """Can rows be found that the model calls normal, far from every normal row?"""
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
    advice = "" if grade == "fine" else f"Whoever wants to pass will: use {_other(patient)}."
    return Finding("attack", grade, told, number, "share of searches", advice)


def manifold(patient: Patient) -> Finding:
    """Are rows that the model makes up itself, and calls normal, as near to the data as normal rows are?

    Rows decoded from between two normal rows' codes, or from the prior, are no outliers: a good model's lie on the
    data, and then neighbours see no difference either. So their AUROC is told beside the plain methods' and is not
    graded; what is, is how many of them the detector passes that lie far from every normal row: its manifold is wider
    than the data, and outliers in those places would pass as well. The combination does not read it, and it never
    fails, for how well it foretells missed outliers has not been measured.
    """
    made = patient.decoded()
    if not made:
        return Finding("manifold", "not applicable", "The detector has no latent space to make rows from.")
    wide = {
        family: patient.far(rows) & (patient.score(rows) >= patient.detector.offset_) for family, rows in made.items()
    }
    shares = {family: proportion(int(passed.sum()), len(passed)) for family, passed in wide.items()}
    worst = max(shares, key=lambda family: shares[family].value)
    number = shares[worst]
    told = {
        "between": f"{number.value:.0%} of the rows decoded from between two normal rows' codes",
        "prior": f"{number.value:.0%} of the rows decoded from the prior",
    }[worst]
    details = {
        "families": _to_json(_beside_plain(patient, made)),
        "wide": {family: share.to_json() for family, share in shares.items()},
    }
    grade: Grade = "warn" if number.low > WIDE else "fine"
    advice = "" if grade == "fine" else f"Use fewer latents, or {_other(patient)}."
    return Finding(
        "manifold",
        grade,
        f"{told} pass as normal, far from every normal one.",
        number,
        "share of rows",
        advice,
        details,
    )


def stability(patient: Patient) -> Finding:
    """Does one column, or one patch of an image, decide everything?"""
    parts = _parts(patient)
    if len(parts) < 2:
        return Finding("stability", "not applicable", "There is one column alone.")
    rng = np.random.default_rng(patient.seed)
    other = patient.normal[rng.permutation(len(patient.normal))]
    reactions = np.array(
        [np.abs(patient.score(np.where(mask, other, patient.normal)) - patient.scores) for mask in parts.values()]
    )

    def shares(columns: Any) -> Any:
        medians = np.median(reactions[:, columns], axis=1)
        return medians / max(medians.sum(), np.finfo(float).tiny)

    n = len(patient.normal)
    value = shares(slice(None))
    worst = int(value.argmax())
    draws = [shares(rng.integers(n, size=n))[worst] for _ in range(200)]
    number = Estimate(float(value[worst]), *(float(end) for end in np.quantile(draws, [0.025, 0.975])))
    name = list(parts)[worst]
    grade = graded(number.value, warn=0.7, fail=0.9)
    told = f"Of how far scores move when one part is another row's, {name} has a share of {number.value:.0%}."
    advice = "" if grade == "fine" else f"Look at {name}: its scale, or outliers in training, may drown the others."
    details = {"shares": dict(zip(parts, value.tolist(), strict=True))}
    return Finding("stability", grade, told, number, "share of the reaction", advice, details)


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
        f"the patch in row {i + 1}, column {j + 1} of 4 × 4": (rows[:, None] == i) & (columns == j)
        for i in range(4)
        for j in range(4)
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
    number = rank_correlation(*scores)
    told = f"Rank correlation of two refits' scores of normal rows: {number.value:+.2f}."
    grade: Grade = "fine" if number.value >= STEADY else "warn"
    advice = "" if grade == "fine" else "What it says depends on chance: give more rows, or use a smaller network."
    return Finding("refits", grade, told, number, "rank correlation", advice)


CHECKS = (
    Check("training", "Did training go well?", "P0 §3.2, P3 §4", False, training),
    Check("latents", "Are its latents used?", "P0 §4.2, P4", False, latents),
    Check("scaling", "Do all columns count?", "–", False, scaling),
    Check("calibration", "Does its false-alarm rate hold?", "–", True, calibration),
    Check("drift", "Are these rows like those it learned from?", "–", True, drift),
    Check("red team", "Does it see synthetic outliers?", "P3 §5", True, red_team),
    Check("agreement", "Does it agree with neighbours?", "–", True, agreement),
    Check("identity", "Does it copy whatever comes?", "P3 §1", True, identity),
    Check("stability", "Does one part decide everything?", "–", True, stability),
    Check("complexity", "Does it measure complexity alone?", "P3 §5.2", True, complexity),
    Check("attack", "Can it be fooled?", "P3 §3", True, attack),
    Check("manifold", "Is what it makes up near the data?", "P3 Fig. 7", True, manifold),
    Check("refits", "Would another fit say the same?", "–", True, refits, _refits_take),
)
