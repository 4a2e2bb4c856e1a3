"""Is the doctor right? A zoo of honest and deliberately broken detectors, on data with real outliers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from offmanifold.data import benchmarks
from offmanifold.detectors import AE, NAE, VAE, MultiscaleDenoiser, OutlierDetector
from offmanifold.diagnosis.checks import CHECKS
from offmanifold.diagnosis.combination import TERMS, features, verdict_of
from offmanifold.diagnosis.doctor import diagnose
from offmanifold.diagnosis.findings import Finding
from offmanifold.measures.detection import auroc, proportion
from offmanifold.measures.estimates import Estimate, rank_correlation
from offmanifold.measures.plain import Neighbours
from offmanifold.report.figures import ACCENT, NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study

Array = npt.NDArray[Any]
# Scale → rows to train on, digits of scikit-learn held out.
SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "smoke": (120, (1,)),
    "laptop": (2000, (1, 4, 8)),
    "paper": (10_000, tuple(range(10))),
}
# Larger images: what is learned from, and the digit left out of it or the set that is the outliers.
PICTURES: dict[str, tuple[str, int | str]] = {
    "mnist without 4": ("mnist", 4),
    "fashion against mnist": ("fashion_mnist", "mnist"),
    "fashion against letters": ("fashion_mnist", "emnist_letters"),
}
# A detector fails where its AUROC is so far below that of nearest neighbours on the same rows.
MARGIN = 0.1
# What the combination cannot see: that real outliers are hard to tell, for neighbours too.
LEAST_AUROC = 0.8


# Refits say nothing about the weights that were broken. Searches foretold nothing beside the other checks (three seeds
# of sixteen detectors), and either would take most of the time.
EXAMINED = tuple(check.name for check in CHECKS if check.name not in ("refits", "attack"))


class Member(NamedTuple):
    """A detector of the zoo.

    Attributes
    ----------
    make : (columns, common parameters) → detector
    on : {"table", "image", ""}
        The kind of rows that it is for; both unless told.
    spoil_rows : (train, outliers, generator) → train, outliers to be found, optional
    measured : (train, seed) → rows → rows, optional
        How rows of a table, those it is examined on too, are brought to the units that it sees.
    spoil : detector → None, optional
        Breaks it after training, before it is calibrated again.
    """

    make: Callable[[int, dict[str, Any]], OutlierDetector]
    on: str = ""
    spoil_rows: Callable[[Array, Array, np.random.Generator], tuple[Array, Array]] | None = None
    measured: Callable[[Array, int], Callable[[Array], Array]] | None = None
    spoil: Callable[[OutlierDetector], None] | None = None


def _contaminated(train: Array, odd: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Every fifth row to learn from is an outlier; others are to be found."""
    known, unknown = odd[::2], odd[1::2]
    return np.concatenate([train, known[rng.integers(len(known), size=len(train) // 4)]]), unknown


def _repeated(train: Array, odd: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A tenth of the rows, each there ten times: those to stop by and to calibrate with were trained on."""
    return train[np.resize(np.arange(max(len(train) // 10, 1)), len(train))], odd


def _wrong_units(train: Array, seed: int) -> Callable[[Array], Array]:
    """Columns in units that differ by up to four powers of ten."""
    unit: Array = np.power(10.0, np.random.default_rng(seed).uniform(-2, 2, train.shape[1]))
    return lambda rows: rows * unit


def _as_probabilities(train: Array, seed: int) -> Callable[[Array], Array]:
    """Columns squeezed into [0, 1], as a Bernoulli likelihood asks for; what lies outside the training rows' is cut."""
    low, width = train.min(0), np.maximum(np.ptp(train, 0), 1e-12)
    return lambda rows: ((rows - low) / width).clip(0, 1)


def _shuffled(detector: OutlierDetector) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in detector.module_.parameters():
            flat = weights.view(-1)
            flat.copy_(flat[torch.randperm(flat.numel(), generator=generator)].clone())


def _flipped(detector: Any) -> None:
    right = detector._energy_terms
    detector._energy_terms = lambda model, rows: {name: -term for name, term in right(model, rows).items()}


HONEST = ("AE", "DAE", "VAE", "VAE, γ learned", "multi-scale denoiser", "NAE")
# The normalised autoencoder takes minutes with its defaults.
SHORTER = {"pretraining_steps": 1000, "steps": 100}
ZOO: dict[str, Member] = {
    "AE": Member(lambda d, own: AE(**own)),
    "DAE": Member(lambda d, own: AE(noise=0.3, **own)),
    "VAE": Member(lambda d, own: VAE(**own)),
    "VAE, γ learned": Member(lambda d, own: VAE(gamma="learned", **own)),
    "multi-scale denoiser": Member(lambda d, own: MultiscaleDenoiser(**{"steps": 300, **own, "network": "auto"})),
    "NAE": Member(lambda d, own: NAE(**{**own, **SHORTER}), on="image"),
    "untrained": Member(lambda d, own: AE(**{**own, "steps": 1})),
    "stopped early": Member(lambda d, own: AE(**{**own, "steps": 20})),
    "over-trained": Member(lambda d, own: AE(noise=0, **own), spoil_rows=_repeated),
    "identity": Member(lambda d, own: AE(noise=0, latent_dim=2 * d, **own)),
    "too big": Member(lambda d, own: AE(**{**own, "network": "mlp", "latent_dim": d, "noise": 0, "hidden": [512] * 2})),
    "too small": Member(lambda d, own: AE(**{**own, "network": "mlp", "latent_dim": 1, "noise": 0, "hidden": [2]})),
    "KL switched off": Member(lambda d, own: VAE(beta=0, score_by="reconstruction", **own)),
    "collapsed": Member(lambda d, own: VAE(beta=100, **own)),
    "scored by KL alone": Member(lambda d, own: VAE(score_by="kl", **own)),
    "wrong likelihood": Member(
        lambda d, own: VAE(likelihood="bernoulli", scale=None, **own), measured=_as_probabilities
    ),
    "contaminated rows": Member(lambda d, own: AE(**own), spoil_rows=_contaminated),
    "wrong scaling": Member(lambda d, own: AE(scale=None, **own), on="table", measured=_wrong_units),
    "weights shuffled": Member(lambda d, own: AE(**own), spoil=_shuffled),
    "sign flipped": Member(lambda d, own: AE(**own), spoil=_flipped),
}
# What takes too long with images on two cores.
SLOW = ("multi-scale denoiser",)


def _load(data: str, scale: str, seed: int) -> tuple[Array, Array, Array]:
    """Return training rows, other normal rows and outliers of a data set."""
    rows = SIZES[scale][0]
    if data.startswith("digit "):
        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        images, labels = np.round(pixels[order] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8), labels[order]
        normal, odd = (images[kept] for kept in _apart(labels, int(data.removeprefix("digit "))))
        return normal[: len(normal) // 2][:rows], normal[len(normal) // 2 :], odd
    if data in PICTURES:
        name, other = PICTURES[data]
        found = benchmarks.images(name)
        # MNIST's test images are by other writers, the easier ones first: they are not what was learned from.
        order = np.random.default_rng(seed).permutation(len(found.train))
        images, labels = found.train[order], found.train_labels[order]
        if isinstance(other, str):
            normal, odd = images, benchmarks.images(other).test
        else:
            normal, odd = (images[kept] for kept in _apart(labels, other))
        return normal[:rows], normal[rows : 2 * rows], odd
    table = benchmarks.table(data, seed)
    return table.train[:rows], table.normal, table.outliers


def _apart(labels: Array, digit: int) -> tuple[Array, Array]:
    """Return which images are of other digits, and which of this one."""
    return labels != digit, labels == digit


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a data set and seed; all members of the zoo are examined in it."""
    names = [f"digit {digit}" for digit in SIZES[scale][1]]
    if scale != "smoke":
        with contextlib.suppress(benchmarks.DataMissing):  # the digits come with scikit-learn
            names += [*PICTURES, *sorted(benchmarks.table_names())]
    members = [name for name in ZOO if scale != "smoke" or name in ("AE", "collapsed", "sign flipped", "too small")]
    found = []
    for name in names:
        own: dict[str, Any] = {"steps": 3, "hidden": [16]} if scale == "smoke" else {}
        chosen = members
        if scale == "laptop" and " " in name:
            chosen = [member for member in members if member not in SLOW]
        if scale == "laptop" and name in PICTURES:  # dense networks, which two cores train in seconds
            own = {"network": "mlp", "steps": 300}
        found.append(
            {"name": f"{name.replace(' ', '-')}-seed{seed}", "data": name, "scale": scale, "seed": seed,
             "members": chosen, "parameters": own}
        )  # fmt: skip
    return found


def run(job: Job) -> dict[str, Any]:
    """Train every member, let the doctor examine it, and measure it on real outliers."""
    train, normal, odd = _load(job["data"], job["scale"], job["seed"])
    examined, test = normal[: len(normal) // 2][:1000], normal[len(normal) // 2 :][:1000]
    odd = odd[:1000]
    plain = Neighbours(standardise=train.ndim == 2).fit(train)
    neighbours = auroc(plain.score_samples(test), plain.score_samples(odd))
    members = {}
    for name in job["members"]:
        member = ZOO[name]
        if member.on not in ("", "table" if train.ndim == 2 else "image"):
            continue
        rows, unknown = train, odd
        if member.spoil_rows is not None:
            rows, unknown = member.spoil_rows(train, odd, np.random.default_rng(job["seed"]))
        measured: Callable[[Array], Array] = _as_they_are
        if member.measured is not None and train.ndim == 2:
            measured = member.measured(train, job["seed"])
        own = {**job["parameters"], "random_state": job["seed"], "verbose": False}
        detector = member.make(train[0].size, own).fit(measured(rows))
        if member.spoil is not None:
            member.spoil(detector)
            split = detector.split(len(rows))[0]
            detector.calibration_scores_ = np.sort(detector.score_samples(rows[split]))
        parts = [measured(part) for part in (examined, test, unknown)]
        diagnosis = diagnose(detector, parts[0], budget="1h", checks=EXAMINED, random_state=job["seed"])
        real = auroc(*(np.nan_to_num(detector.score_samples(part), nan=-1e300) for part in parts[1:]))
        members[name] = {
            "auroc": real.to_json(), "diagnosis": diagnosis.to_json(),
        }  # fmt: skip
    return {"neighbours": neighbours.to_json(), "members": members}


def _as_they_are(rows: Array) -> Array:
    return rows


# --- what the records tell ------------------------------------------------------------------------------


def _finding(values: dict[str, Any]) -> Finding:
    number = values["number"]
    return Finding(**{**values, "number": None if number is None else Estimate(**number)})


class Seen(NamedTuple):
    """What the records tell of each detector that could be examined: features ``(n, k)``, the others ``(n,)``.

    ``grades`` are dicts of each check's verdict.
    """

    features: Array
    real: Array
    neighbours: Array
    sets: Array
    names: Array
    grades: Array

    @property
    def failed(self) -> Array:
        below: Array = self.real < self.neighbours - MARGIN
        return below


def seen(records: list[Record]) -> Seen:
    """Read the records; too small data sets, whose detectors could not be examined, are left out."""
    rows = []
    for record in records:
        neighbours = record["metrics"]["neighbours"]["value"]
        for name, member in record["metrics"]["members"].items():
            findings = [_finding(values) for values in member["diagnosis"]["findings"]]
            found = features(findings)
            if "red team against neighbours" in found:
                values = [found.get(feature, np.nan) for feature in TERMS]
                # Digits share most of their images, Fashion-MNIST's outliers their model: they are left out together.
                kind = record["job"]["data"].split(" ")[0]
                grades = {finding.check: finding.verdict for finding in findings}
                rows.append((values, member["auroc"]["value"], neighbours, kind, name, grades))
    return Seen(*(np.array(column) for column in zip(*rows, strict=True)))


class Fitted(NamedTuple):
    """A logistic regression on standardised features, missing ones at their mean."""

    mean: Array
    scale: Array
    weights: Array
    bias: float

    def probability(self, rows: Array) -> Array:
        standard = np.nan_to_num((rows - self.mean) / self.scale)
        return 1 / (1 + np.exp(-(standard @ self.weights + self.bias)))


def fit(rows: Array, failed: Array) -> Fitted:
    """Fit the combination."""
    mean, scale = np.nanmean(rows, 0), np.maximum(np.nanstd(rows, 0), 1e-6)
    model = LogisticRegression(C=1.0).fit(np.nan_to_num((rows - mean) / scale), failed)
    return Fitted(mean, scale, model.coef_[0], float(model.intercept_[0]))


def left_out(rows: Array, failed: Array, sets: Array) -> Array:
    """Return each row's probability of failure from a fit without its data set (all seeds of it)."""
    found = np.full(len(rows), np.nan)
    for name in np.unique(sets):
        inside = sets == name
        if len(set(failed[~inside])) == 2:
            found[inside] = fit(rows[~inside], failed[~inside]).probability(rows[inside])
    return found


def _predicts(rows: Array, failed: Array, sets: Array) -> str:
    probability = left_out(rows, failed, sets)
    known = ~np.isnan(probability)
    if len(set(failed[known])) < 2:
        return "–"
    return str(auroc(-probability[known & ~failed], -probability[known & failed]))


def by_family(records: list[Record]) -> dict[str, tuple[Array, Array, Array]]:
    """Return for each family of synthetic outliers AUROC against neighbours', synthetic and real, and the data sets."""
    pairs: dict[str, list[tuple[float, float, str]]] = {}
    for record in records:
        neighbours = record["metrics"]["neighbours"]["value"]
        for member in record["metrics"]["members"].values():
            real = member["auroc"]["value"] - neighbours
            for finding in member["diagnosis"]["findings"]:
                if finding["check"] in ("red team", "manifold"):
                    for family, aurocs in finding["details"].get("families", {}).items():
                        synthetic = aurocs["detector"]["value"] - aurocs["kNN"]["value"]
                        pairs.setdefault(family, []).append((synthetic, real, record["job"]["data"]))
    return {family: tuple(map(np.array, zip(*own, strict=True))) for family, own in pairs.items()}  # type: ignore[misc]


def _over_sets(synthetic: Array, real: Array, sets: Array, draws: int = 500) -> tuple[float, float, float]:
    """Return the rank correlation and its interval from a bootstrap of whole data sets: detectors on one are alike."""
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(sets == name) for name in np.unique(sets)]
    values = []
    for _ in range(draws):
        chosen = np.concatenate([places[i] for i in rng.integers(len(places), size=len(places))])
        values.append(rank_correlation(synthetic[chosen], real[chosen]).value)
    low, high = np.quantile(values, [0.025, 0.975])
    return rank_correlation(synthetic, real).value, float(low), float(high)


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    found = seen(records)
    failed, probability = found.failed, left_out(found.features, found.failed, found.sets)
    verdicts = np.array([verdict_of(*pair) for pair in zip(found.grades, probability, strict=True)])
    lines = [
        f"{len(records)} data sets, {len(failed)} detectors that could be examined. Failed: AUROC on real outliers "
        f"more than {MARGIN} below nearest neighbours'. Verdicts and probabilities are of a combination fitted without "
        "the data set (all digits of a kind at once).",
        "",
        "| detector | | mean AUROC, real | failed: distrust | care | trust | good: distrust | care | trust | "
        "probability |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {name: (name, "honest" if name in HONEST else "broken", found.names == name) for name in ZOO}
    honest = np.isin(found.names, HONEST)
    groups |= {"all honest": ("**all honest**", "", honest), "all broken": ("**all broken**", "", ~honest)}
    for name, kind, own in groups.values():
        if own.any():
            cells = [name, kind, f"{found.real[own].mean():.3f}"]
            for group in (own & failed, own & ~failed):
                cells += [f"{(verdicts[group] == verdict).sum()}" for verdict in ("distrust", "care", "trust")]
            known = probability[own][~np.isnan(probability[own])]
            lines.append(f"| {' | '.join(cells)} | {f'{known.mean():.2f}' if len(known) else '–'} |")
    hard = (found.real < LEAST_AUROC) | failed
    lines += [
        "",
        f"AUROC of predicting failure on data sets left out: {_predicts(found.features, failed, found.sets)}; of "
        f"predicting that or an AUROC below {LEAST_AUROC}: {_predicts(found.features, hard, found.sets)}.",
    ]
    if len(set(failed)) == 2:
        fitted = fit(found.features, failed)
        lines += ["", "The combination of all data sets:", ""]
        lines += ["| feature | mean | scale | weight |", "|---|---|---|---|"]
        columns = zip(TERMS, fitted.mean, fitted.scale, fitted.weights, strict=True)
        lines += [f"| {name} | {mean:.4f} | {scale:.4f} | {weight:+.4f} |" for name, mean, scale, weight in columns]
        lines += [f"| bias | | | {fitted.bias:+.4f} |"]
    lines += [
        "",
        "Does a family of synthetic outliers predict real ones? Rank correlation of the AUROC against neighbours'",
    ]
    lines[-1] += ", over data sets and detectors, with a bootstrap over data sets:"
    lines += ["", "| family | correlation | data sets |", "|---|---|---|"]
    told = [(family, *_over_sets(*own), len(set(own[2]))) for family, own in by_family(records).items()]
    lines += [
        f"| {family} | {value:.2f} [{low:.2f}, {high:.2f}] | {sets} |"
        for family, value, low, high, sets in sorted(told, key=lambda row: (-row[4], -row[1]))
    ]
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the reliability curve, and what the red team says beside real outliers."""
    found = seen(records)
    failed, probability = found.failed, left_out(found.features, found.failed, found.sets)
    drawing = new_figure(9, 3.6)
    left, right = drawing.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    known = ~np.isnan(probability)
    if known.any():
        order = np.argsort(probability[known])
        for part in np.array_split(order, min(8, len(order))):
            share = proportion(int(failed[known][part].sum()), len(part))
            x = probability[known][part].mean()
            left.plot([x, x], [share.low, share.high], color=ACCENT, linewidth=1)
            left.plot(x, share.value, "o", color=ACCENT, markersize=4)
    left.set_xlabel("probability of failure, data set left out")
    left.set_ylabel("share that failed")
    honest = np.isin(found.names, HONEST)
    place = list(TERMS).index("red team against neighbours")
    for own, colour, label in ((honest, NORMAL, "honest"), (~honest, OUTLIER, "broken")):
        difference = found.real[own] - found.neighbours[own]
        right.plot(found.features[own, place], difference, ".", color=colour, label=label, markersize=4)
    right.set_xlabel("AUROC against neighbours', synthetic outliers")
    right.set_ylabel("AUROC against neighbours', real outliers")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(drawing, path)


STUDY = Study(
    name="doctor",
    title="Is the doctor right about detectors that fail?",
    paper="no paper's",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [ZOO[name].make(10, job["parameters"]) for name in job["members"]],
)
