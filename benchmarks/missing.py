"""Missing cells on the ADBench tables: do false alarms stay what was asked for, and what does detection lose?

python benchmarks/missing.py [seed] [detector …]
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict

import numpy as np

from offmanifold import DETECTORS, auroc
from offmanifold.data.benchmarks import tables

SHARES = (0.0, 0.1, 0.3)
# Rows of training, normal rows and outliers at most; tables of more columns are left out.
MOST_ROWS, MOST_COLUMNS = 2000, 100
RATE = 0.05
DEFAULT = ("multiscale-denoiser", "ae", "vae")


def hidden(rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return rows with cells hidden at random."""
    return np.where(rng.random(rows.shape) < share, np.nan, rows)


def imputed(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return rows with the columns' medians in missing cells: what is often done."""
    return np.where(np.isnan(rows), np.nan_to_num(np.nanmedian(train, 0)), rows)


def main(seed: int = 0, *keys: str) -> None:
    warnings.simplefilter("ignore")
    found: dict[tuple[str, str, float], list[tuple[float, float]]] = defaultdict(list)
    for table in tables(seed, most_rows=MOST_ROWS):
        if table.train.shape[1] > MOST_COLUMNS:
            continue
        for key in keys or DEFAULT:
            cls = DETECTORS[key]
            whole = cls(random_state=seed, verbose=False).fit(table.train)
            for share in SHARES:
                rng = np.random.default_rng(seed)
                train, normal, odd = (hidden(rows, share, rng) for rows in (table.train, table.normal, table.outliers))
                gappy = cls(random_state=seed, verbose=False).fit(train) if share else whole
                filled = imputed(normal, table.train), imputed(odd, table.train)
                for name, detector, pair in (
                    ("learned complete, gaps in new rows", whole, (normal, odd)),
                    ("the same, gaps filled with medians", whole, filled),
                    ("gaps in all rows", gappy, (normal, odd)),
                ):
                    alarms = float((detector.p_values(pair[0]) <= RATE).mean())
                    area = auroc(*(detector.score_samples(rows) for rows in pair)).value
                    found[key, name, share].append((alarms, area))
        print(table.name, file=sys.stderr, flush=True)
    print("| detector | | missing | AUROC | false alarms at 5 % | worst table |\n|---|---|---|---|---|---|")
    for (key, name, share), values in found.items():
        alarms, areas = np.array(values).T
        print(f"| {key} | {name} | {share:.0%} | {areas.mean():.3f} | {alarms.mean():.1%} | {alarms.max():.1%} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
