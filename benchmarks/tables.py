"""AUROC and training time on the ADBench tables: ours beside PyOD's AE and VAE and nearest neighbours.

    python benchmarks/tables.py [--seeds 0 1] [--threads 1] [--only ae vae multiscale-denoiser knn pyod-ae pyod-vae]

One process, one run: times compare. Every detector sees the same rows; peers get standardised columns, ours
standardise by themselves. No outlier is used for anything but the figure.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from offmanifold import AE, VAE, MultiscaleDenoiser, atomic
from offmanifold.data.benchmarks import Table, tables
from offmanifold.measures import auroc

Scorer = Callable[[Any], Any]


def ours(cls: type) -> Callable[[Table, int], Scorer]:
    return lambda table, seed: cls(random_state=seed, verbose=False).fit(table.train).score_samples


def knn(table: Table, seed: int) -> Scorer:
    scaler = StandardScaler().fit(table.train)
    neighbours = NearestNeighbors(n_neighbors=5).fit(scaler.transform(table.train))
    return lambda rows: -neighbours.kneighbors(scaler.transform(rows))[0][:, -1]


def pyod(name: str) -> Callable[[Table, int], Scorer]:
    def fit(table: Table, seed: int) -> Scorer:
        from pyod.models.auto_encoder import AutoEncoder
        from pyod.models.vae import VAE as PyODVAE

        scaler = StandardScaler().fit(table.train)
        model = {"ae": AutoEncoder, "vae": PyODVAE}[name](random_state=seed, verbose=0)
        model.fit(scaler.transform(table.train))
        return lambda rows: -model.decision_function(scaler.transform(rows))

    return fit


METHODS: dict[str, Callable[[Table, int], Scorer]] = {
    "ae": ours(AE),
    "vae": ours(VAE),
    "multiscale-denoiser": ours(MultiscaleDenoiser),
    "knn": knn,
    "pyod-ae": pyod("ae"),
    "pyod-vae": pyod("vae"),
}


def measure(seeds: list[int], only: list[str]) -> dict[str, Any]:
    found: dict[str, dict[str, list[float]]] = {name: {} for name in only}
    seconds = dict.fromkeys(only, 0.0)
    for seed in seeds:
        for table in tables(seed):
            for name in only:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    began = time.perf_counter()
                    score = METHODS[name](table, seed)
                    seconds[name] += time.perf_counter() - began
                    value = auroc(score(table.normal), score(table.outliers)).value
                found[name].setdefault(table.name, []).append(value)
            print(seed, table.name, *(f"{name} {found[name][table.name][-1]:.3f}" for name in only), flush=True)
    return {
        "seeds": seeds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "auroc": found,
        "mean": {name: float(np.mean([np.mean(v) for v in by.values()])) for name, by in found.items()},
        "training_seconds_per_seed": {name: round(value / len(seeds), 1) for name, value in seconds.items()},
    }


def markdown(result: dict[str, Any]) -> str:
    names = list(result["auroc"])
    lines = ["| table | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for table in result["auroc"][names[0]]:
        cells = [f"{np.mean(result['auroc'][name][table]):.3f}" for name in names]
        lines.append(f"| {table} | " + " | ".join(cells) + " |")
    lines.append("| **mean** | " + " | ".join(f"**{result['mean'][name]:.4f}**" for name in names) + " |")
    times = (f"{result['training_seconds_per_seed'][name]:.1f} s" for name in names)
    lines.append("| training, all tables | " + " | ".join(times) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options.seeds, options.only)
    options.out.mkdir(exist_ok=True)
    atomic.write(options.out / "tables.json", json.dumps(result, indent=1) + "\n")
    atomic.write(options.out / "tables.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
