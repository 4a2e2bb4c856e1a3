"""Speed and memory, as ratios within one run.

    python benchmarks/speed.py [--gigabytes 2]

- training: our loop against the same network, loss and optimiser in a bare PyTorch loop
- scoring: ``score_samples`` against the bare forward pass over the same rows
- denoiser: rows of 50 columns that ``MultiscaleDenoiser`` scores a second with 10 000 stored ones, on all cores
- memory: the peak of ``offmanifold score`` on a file of so many gigabytes, above that of a tiny file
- start: seconds for ``offmanifold --help`` on a warm cache
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from offmanifold import AE, VAE, MultiscaleDenoiser, OutlierDetector, atomic
from offmanifold.data.inputs import Rows
from offmanifold.training.loop import train
from offmanifold.training.precision import choose_dtype, computing_in
from offmanifold.training.threads import limited_to

KINDS = {"table, 3 000 × 20": (3000, 20), "images, 1 000 × 28 × 28": (1000, 28, 28)}


def interleaved(ours: Callable[[], None], bare: Callable[[], None], rounds: int) -> dict[str, float]:
    """Time two ways in turn; return the median seconds of each and the median of the ratios."""
    ours(), bare()
    pairs = []
    for _ in range(rounds):
        times = []
        for work in (ours, bare):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        pairs.append(times)
    return {
        "ours_seconds": statistics.median(pair[0] for pair in pairs),
        "bare_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
    }


def training(detector: OutlierDetector, rows: Any, steps: int, rounds: int) -> dict[str, float]:
    """Same module, loss, batches, optimiser and precision; the bare loop does nothing else."""
    described = Rows(rows)
    settings = detector._resolved(described.spec, len(rows)) | {"steps": steps}
    data = torch.from_numpy(np.asarray(described.take(slice(None)), dtype=np.float32))
    model = detector._build(described.spec, settings)
    dtype = choose_dtype("auto", model, data.device)
    (phase,) = detector._phases(model, settings)
    (update,) = phase.updates

    def ours() -> None:
        train(model, [phase], data, data[:200], seed=0, dtype=dtype)

    def bare() -> None:
        generator = torch.Generator().manual_seed(0)
        parameters = [p for group in update.groups for p in group.parameters]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
        model.train()
        with computing_in(dtype, model):
            done = 0
            while done < steps:
                for index in torch.randperm(len(data), generator=generator).split(phase.batch_size):
                    loss = update.loss(data[index], generator)[0].mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    done += 1
                    if done == steps:
                        break

    with limited_to(detector._threads(model, settings)):
        return interleaved(ours, bare, rounds)


def scoring(detector: OutlierDetector, rows: Any, rounds: int) -> dict[str, float]:
    """The bare pass has the rows prepared already, in the batches it likes best."""
    many = rows if rows.ndim == 3 else np.concatenate([rows] * 60)
    data = detector._prepare(Rows(many, detector.spec_).take(slice(None)))

    def ours() -> None:
        detector.score_samples(many)

    def bare_in(batch: int) -> Callable[[], None]:
        def bare() -> None:
            with torch.no_grad():
                for part in data.split(batch):
                    sum(detector._energy_terms(detector.module_, part).values())

        return bare

    trials = {}
    for batch in (64, 256, 1024, 4096):
        bare_in(batch)()
        began = time.perf_counter()
        bare_in(batch)()
        trials[batch] = time.perf_counter() - began
    best = min(trials, key=lambda batch: trials[batch])
    found = interleaved(ours, bare_in(best), rounds)
    return found | {"bare_batch": best, "throughput_of_bare": 1 / found["ratio"], "rows": len(many)}


def denoiser(rounds: int, stored: int = 10_000, columns: int = 50) -> float:
    """Return how many rows are scored a second; how long the network was trained does not matter."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(columns, columns)) / columns**0.5
    rows = rng.normal(size=(2 * stored, columns)) @ mixing
    fitted = MultiscaleDenoiser(steps=3, most_rows=stored, verbose=False, random_state=0).fit(rows)
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        fitted.score_samples(rows)
        times.append(time.perf_counter() - began)
    return len(rows) / statistics.median(times[1:])


def memory(gigabytes: float) -> dict[str, float]:
    """Peak resident memory of the score command, above that for a file of a few rows."""
    columns = 50
    many = int(gigabytes * 2**30 / 4 / columns)
    rng = np.random.default_rng(0)
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        AE(steps=20, verbose=False).fit(rng.normal(size=(500, columns))).save(folder / "m.safetensors")
        np.save(folder / "tiny.npy", rng.normal(size=(10, columns)).astype(np.float32))
        big = np.lib.format.open_memmap(folder / "big.npy", "w+", np.float32, (many, columns))
        for start in range(0, many, 500_000):
            stop = min(start + 500_000, many)
            big[start:stop] = rng.normal(size=(stop - start, columns))
        big.flush()
        del big
        peaks["tiny .npy"] = _peak(folder, "tiny.npy")
        peaks[f"{gigabytes:g} GB .npy"] = _peak(folder, "big.npy")
        source = np.load(folder / "big.npy", mmap_mode="r")
        frames = (pl.from_numpy(source[i : i + 250_000], orient="row") for i in range(0, many, 250_000))
        _write_parquet(frames, folder / "big.parquet")
        (folder / "big.npy").unlink()
        rows = pl.from_numpy(rng.normal(size=(500, columns)), orient="row")
        AE(steps=20, verbose=False).fit(rows).save(folder / "m.safetensors")
        peaks[f"{gigabytes:g} GB .parquet"] = _peak(folder, "big.parquet")
    return {name: round(peak - peaks["tiny .npy"], 1) for name, peak in peaks.items()}


def _write_parquet(frames: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    first = next(frames).to_arrow()
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(frame.to_arrow())


def _peak(folder: Path, data: str) -> float:
    """Return the peak of one child in MiB; children of a fresh process, so that peaks do not mix."""
    code = (
        "import resource, subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'offmanifold.cli', 'score', 'm.safetensors', sys.argv[1], "
        "'-o', 's.parquet', '--overwrite', '--json'], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, data], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout)


def start(rounds: int = 7) -> float:
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "offmanifold.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "help_seconds": start(),
        "denoiser_rows_a_second": denoiser(options.rounds),
        "training": {},
        "scoring": {},
    }
    rng = np.random.default_rng(0)
    for kind, shape in KINDS.items():
        rows = rng.random(shape).astype(np.float32)
        steps = 800 if len(shape) == 2 else 200  # checks take their usual share
        for cls in (AE, VAE):
            name = f"{cls.key}, {kind}"
            result["training"][name] = training(cls(), rows, steps, options.rounds)
            fitted = cls(steps=5, verbose=False, random_state=0).fit(rows)
            result["scoring"][name] = scoring(fitted, rows, options.rounds)
            print(name, json.dumps({k: result[k][name] for k in ("training", "scoring")}), flush=True)
    result["memory_above_tiny_file_mib"] = memory(options.gigabytes)
    options.out.mkdir(exist_ok=True)
    atomic.write(options.out / "speed.json", json.dumps(result, indent=1) + "\n")
    lines = ["| what | ours | bare | ratio |", "|---|---|---|---|"]
    for kind in ("training", "scoring"):
        for name, found in result[kind].items():
            lines.append(
                f"| {kind}: {name} | {found['ours_seconds']:.2f} s | {found['bare_seconds']:.2f} s "
                f"| {found['ratio']:.3f} |"
            )
    lines += ["", f"`MultiscaleDenoiser`: {result['denoiser_rows_a_second']:,.0f} rows scored a second"]
    lines += ["", f"`offmanifold --help`: {result['help_seconds']:.2f} s", "", "Peak memory above a tiny file's:"]
    lines += [f"- {name}: {value:.0f} MiB" for name, value in result["memory_above_tiny_file_mib"].items()]
    text = "\n".join(lines) + "\n"
    atomic.write(options.out / "speed.md", text)
    print(text)


if __name__ == "__main__":
    main()
