"""Compare settings without any outlier of the tables that are reported: docs/defaults.md.

    python benchmarks/defaults.py ae noise=0.3 steps=300
    python benchmarks/defaults.py vae gamma=0.1 learning_rate=5e-3
    python benchmarks/defaults.py knn

Prints mean AUROC by kind of task: held-out classes of other data; thinned tails and broken rows made from the
training rows of the shared tables.
"""

from __future__ import annotations

import ast
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from offmanifold import DETECTORS
from offmanifold.data.benchmarks import data_folder, tables
from offmanifold.measures import auroc
from offmanifold.measures.plain import Neighbours

MOST_TRAINING, MOST_NORMAL, MOST_ODD = 2000, 600, 500


class Task(NamedTuple):
    train: Any
    normal: Any
    odd: dict[str, Any]


def split(rng: np.random.Generator, normal: Any, odd: dict[str, Any], share: float = 0.5) -> Task:
    order = rng.permutation(len(normal))
    cut = int(share * len(normal))
    train, rest = normal[order[:cut]][:MOST_TRAINING], normal[order[cut:]][:MOST_NORMAL]
    return Task(train, rest, {kind: rows[:MOST_ODD] for kind, rows in odd.items()})


def held_out_classes(rng: np.random.Generator) -> Iterator[Task]:
    """One class, or all but one, is normal."""
    for load, chosen in (
        (datasets.load_breast_cancer, (0, 1)),
        (datasets.load_wine, (0, 1, 2)),
        (datasets.load_iris, (1, 2)),
    ):
        X, y = load(return_X_y=True)
        for label in chosen:
            yield split(rng, X[y == label], {"classes": X[y != label]})
    X, y = datasets.load_digits(return_X_y=True)
    for label in (1, 4, 7, 8, 9):
        yield split(rng, X[y != label], {"classes": X[y == label]})
    X, y = datasets.load_diabetes(return_X_y=True)
    high = y > np.quantile(y, 0.8)
    yield split(rng, X[~high], {"classes": X[high]}, 0.65)
    with np.load(data_folder() / "uci_tables.npz") as uci:
        for name in ("messidor", "cmc"):
            X, y = uci[f"{name}_x"], uci[f"{name}_y"]
            for label in np.unique(y):
                yield split(rng, X[y == label], {"classes": X[y != label]})
    for name, components in (("mnist", 20), ("fashion_mnist", 20), ("kmnist_test", 30), ("emnist_letters", 20)):
        with np.load(data_folder() / f"{name}.npz") as images:
            pixels, y = images["x_test"].reshape(len(images["x_test"]), -1) / 255, images["y_test"]
        X = PCA(components, random_state=0).fit_transform(pixels)
        for label in (1, 3, 5, 7):
            others = X[y != label]
            yield split(rng, X[y == label], {"classes": others[rng.permutation(len(others))]})
        for label in (2, 4):
            yield split(rng, X[y != label], {"classes": X[y == label]})


def broken_rows(rng: np.random.Generator, train: Any) -> Task:
    """Held-out training rows, damaged in four ways."""
    order = rng.permutation(len(train))
    cut = max(15, int(0.3 * len(train)))
    held, rest = train[order[:cut]], train[order[cut:]]
    n = min(MOST_ODD, max(200, len(held)))
    some, others = held[rng.integers(len(held), size=n)], held[rng.integers(len(held), size=n)]
    columns = held.shape[1]
    odd = {
        "permuted": np.stack([held[rng.integers(len(held), size=n), j] for j in range(columns)], 1),
        "exchanged": np.where(rng.random(some.shape) < 0.2, others, some),
        "noise": some + rng.normal(size=some.shape) * 0.5 * held.std(0),
        "stretched": rest.mean(0) + (some - rest.mean(0)) * rng.uniform(1.5, 3, (n, 1)),
    }
    return Task(rest[:MOST_TRAINING], held[:MOST_NORMAL], odd)


def thinned_tails(rng: np.random.Generator, train: Any) -> Iterator[Task]:
    """The 7 % of rows farthest along a column, or from the mean; an eighth of them stays in training."""
    standard = StandardScaler().fit_transform(train)
    usable = [j for j in range(train.shape[1]) if len(np.unique(train[:, j])) > 20]
    if not usable:
        return
    column = standard[:, rng.choice(usable)] * rng.choice([-1, 1])
    for kind, distance in (("tail", column), ("far", np.linalg.norm(standard, axis=1))):
        tail = rng.permutation(np.flatnonzero(distance > np.quantile(distance, 0.93)))
        kept, odd = tail[: len(tail) // 8], tail[len(tail) // 8 :]
        rest = np.setdiff1d(np.arange(len(train)), tail)
        if len(odd) < 7 or len(rest) < 30:
            continue
        task = split(rng, train[rest], {kind: train[odd]}, 0.75)
        yield task._replace(train=np.concatenate([task.train, train[kept]]))


def tasks() -> Iterator[Task]:
    rng = np.random.default_rng(7)
    yield from held_out_classes(rng)
    for table in tables(0):
        if table.train.shape[1] > 500:  # one table of 1 555 columns: as slow as all others together
            continue
        yield broken_rows(rng, table.train)
        if len(table.train) >= 60:
            yield from thinned_tails(rng, table.train[:4000])


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    name, *assignments = sys.argv[1:]
    chosen = {key: ast.literal_eval(value) for key, _, value in (text.partition("=") for text in assignments)}
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    seconds = 0.0
    for task in tasks():
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector: Any = (
                Neighbours(standardise=True)
                if name == "knn"
                else DETECTORS[name](random_state=0, verbose=False, **chosen)
            )
            score = detector.fit(task.train).score_samples
        seconds += time.perf_counter() - began
        normal = score(task.normal)
        for kind, odd in task.odd.items():
            found.setdefault(kind, []).append(auroc(normal, score(odd)).value)
    means = {kind: float(np.mean(values)) for kind, values in found.items()}
    judged = (2 * means["classes"] + means["tail"] + means["far"]) / 4
    shown = "  ".join(f"{kind} {value:.3f}" for kind, value in means.items())
    print(f"{name} {' '.join(assignments)}: {shown} | mean {np.mean(list(means.values())):.4f}  ", end="")
    print(f"classes and tails {judged:.4f} | {seconds:.0f} s")


if __name__ == "__main__":
    main()
