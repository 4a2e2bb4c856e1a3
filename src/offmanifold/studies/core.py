"""Studies: a table or figure of a paper, as independent jobs whose results are files."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import offmanifold
from offmanifold import atomic
from offmanifold.data.benchmarks import DataMissing
from offmanifold.detectors.chains import families_to_watch
from offmanifold.measures.estimates import mean_of
from offmanifold.measures.plain import Components, Neighbours
from offmanifold.training.loop import TrainingDiverged
from offmanifold.training.threads import cores, limited_to, share

SCALES = ("smoke", "laptop", "paper")
SEEDS = {"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2)}
Job = dict[str, Any]
Array = npt.NDArray[Any]
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A table or figure to reproduce.

    Attributes
    ----------
    name, title, paper : str
    jobs : (scale, seed) → list of job
        Independent jobs as JSON-able dicts with a ``"name"``; each is complete in itself.
    run : job → metrics
        Does one job and returns JSON-able metrics; arrays under ``"arrays"`` are stored beside it.
    table : records → str
        The Markdown table, with the paper's numbers beside ours.
    figure : (records, path) → None
    seeds : mapping of scale → seeds
        The default seeds of each scale; all of them are reported.
    against : bool
        Whether jobs may bring further kinds of images, by name, as files or folders under ``"against"``.
    """

    name: str
    title: str
    paper: str
    jobs: Callable[[str, int], list[Job]]
    run: Callable[[Job], dict[str, Any]]
    table: Callable[[list[Record]], str]
    figure: Callable[[list[Record], Path], None]
    seeds: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=SEEDS.copy)
    against: bool = False


def digest(array: npt.NDArray[Any]) -> str:
    """Return a short digest of raw scores, so that two runs can be compared."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def folder_of(study: Study, scale: str, results: Path) -> Path:
    """Return where the results of a study at a scale lie."""
    return results / study.name / scale


def run_study(
    study: Study,
    scale: str,
    *,
    results: Path = Path("results"),
    seeds: Sequence[int] | None = None,
    only: str = "*",
    jobs: int = 1,
    against: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Record]:
    """Run the jobs of a study that have no result yet, then write its table and figure.

    Parameters
    ----------
    study : Study
    scale : {"smoke", "laptop", "paper"}
    results : path
    seeds : sequence of int, optional
        Default: the study's own for this scale.
    only : str
        Shell pattern of the jobs' names, such as "nae-*".
    jobs : int
        Jobs side by side, each with its share of the cores.
    against : mapping of name → file or folder, optional
        Further kinds of images to score, for a study that takes them. A job with others than before is done again.
    report : callable
        Is told about progress.

    Raises
    ------
    RuntimeError
        Once all other jobs are done and the table is written, where training of some diverged.
    """
    if against and not study.against:
        raise ValueError(f"{study.name} compares fixed kinds of rows; it takes no others (got {', '.join(against)}).")
    folder = folder_of(study, scale, results)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = study.seeds[scale] if seeds is None else seeds
    all_jobs = [job for seed in chosen for job in study.jobs(scale, seed) if fnmatch.fnmatch(job["name"], only)]
    if against:
        all_jobs = [job | {"against": dict(against)} for job in all_jobs]
    if not all_jobs:
        names = ", ".join(job["name"] for job in study.jobs(scale, chosen[0]))
        raise ValueError(f"No job of {study.name} at scale {scale} matches {only!r}. They are: {names}.")
    waiting = [job for job in all_jobs if _finished(folder, job) is None]
    done = len(all_jobs) - len(waiting)
    if done:
        report(f"{done} of {len(all_jobs)} jobs were done before.")
    diverged: dict[str, TrainingDiverged] = {}

    def finish(job: Job, outcome: Callable[[], Record]) -> None:
        """Tell of a job; one that diverges is a row that is missing, not the end of the others."""
        nonlocal done
        try:
            told = f"{outcome()['seconds']:.0f} s"
        except TrainingDiverged as error:
            diverged[job["name"]], told = error, str(error)
        done += 1
        report(f"[{done}/{len(all_jobs)}] {job['name']}: {told}")

    if jobs == 1:
        for job in waiting:
            report(f"[{done + 1}/{len(all_jobs)}] {job['name']} …")
            finish(job, functools.partial(_run_one, study.run, job, folder, None))
    elif waiting:
        # Fresh processes: a forked one inherits PyTorch's thread pool in an unusable state.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            pending: dict[Future[Record], Job] = {
                pool.submit(_run_one, study.run, job, folder, share(jobs)): job for job in waiting
            }
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    finish(pending.pop(future), future.result)
    records = summarise(study, scale, results=results, report=report)
    if diverged:
        raise RuntimeError(
            f"Training of {len(diverged)} of {len(all_jobs)} jobs diverged, and the table is without them: "
            f"{', '.join(diverged)}. First: {next(iter(diverged.values()))}"
        )
    return records


def summarise(
    study: Study, scale: str, *, results: Path = Path("results"), report: Callable[[str], None] = lambda text: None
) -> list[Record]:
    """Write table and figure from the result files alone, and return the records.

    Results of jobs that have other settings by now are left out, and ``report`` is told.
    """
    folder = folder_of(study, scale, results)
    found = load_records(study, scale, results=results)
    known = {seed: _jobs_by_name(study, scale, seed) for seed in {record["job"]["seed"] for record in found}}
    records, outdated = list[Record](), list[Record]()
    for record in found:
        (records if _is_current(record["job"], known[record["job"]["seed"]]) else outdated).append(record)
    if outdated:
        report(
            "Left out, for these jobs have other settings by now: "
            f"{', '.join(record['job']['name'] for record in outdated)}. "
            f"`offmanifold study run {study.name} --scale {scale}` does them again."
        )
    if records:
        atomic.write(folder / "table.md", study.table(records))
        study.figure(records, folder / "figure.png")
    return records


def load_records(study: Study, scale: str, *, results: Path = Path("results")) -> list[Record]:
    """Read the result files of a study, sorted by job name."""
    folder = folder_of(study, scale, results)
    return [json.loads(path.read_text()) | {"_folder": str(folder)} for path in sorted(folder.glob("*.json"))]


def arrays_of(record: Record) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays stored beside a record."""
    path = Path(record["_folder"]) / f"{record['job']['name']}.npz"
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and Student's 95 % interval over seeds (the mean alone for one seed)."""
    estimate = mean_of(values)
    return estimate.value, estimate.low, estimate.high


def baseline_scores(name: str, train: Array, normal: Array, odd: Array) -> tuple[Array, Array]:
    """Return scores (high = normal) of two plain methods on pixels, for perspective.

    Parameters
    ----------
    name : {"kNN", "PCA"}
        Minus the distance to the fifth neighbour; minus the squared error a pixel left by 32 principal components.
    train, normal, odd : uint8 images
    """
    plain, unit = (Neighbours(), 1) if name == "kNN" else (Components(32), train[0].size)
    plain.fit(train / 255)
    return plain.score_samples(normal / 255) / unit, plain.score_samples(odd / 255) / unit


def shown(values: Sequence[float], *, share: bool = False) -> str:
    """Return the mean over seeds as tables show it: with its interval where there are several, "–" where none.

    Three decimals, more for small numbers and fewer for large ones. A ``share`` (an AUROC) has three, and an interval
    within [0, 1], which Student's does not know of.
    """
    if not values:
        return "–"
    mean, low, high = over_seeds(values)
    size = abs(mean)
    decimals = 3 if share or 0.1 <= size < 10 or size == 0 else 4 if size < 0.1 else 1 if size < 100 else 0
    if share:
        low, high = max(0.0, low), min(1.0, high)
    interval = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if len(values) > 1 else ""
    return f"{mean:.{decimals}f}{interval}"


def watched_by(kind: str, watch: Sequence[str] | str = "auto") -> str:
    """Return the sentence that says by which made outliers of "image" or "table" data training was watched."""
    return f"NAE and IGEBM were watched by made outliers: {', '.join(families_to_watch(watch, kind))}."


def slug(row: str) -> str:
    """Return a row's name as it stands in file names: "VAE(L)" → "vae-l"."""
    return row.lower().replace("(", "-").replace(")", "")


def _finished(folder: Path, job: Job) -> Record | None:
    path = folder / f"{job['name']}.json"
    if not path.is_file():
        return None
    record: Record = json.loads(path.read_text())
    return record if record["job"] == _as_stored(job) else None


def _as_stored(job: Job) -> Job:
    """Return the job as its record has it: tuples are lists there."""
    stored: Job = json.loads(json.dumps(job))
    return stored


def _jobs_by_name(study: Study, scale: str, seed: int) -> dict[str, Job]:
    """Return the jobs as records have them; which ones there are can go by the data at hand."""
    try:
        return {job["name"]: _as_stored(job) for job in study.jobs(scale, seed)}
    except DataMissing:
        return {}


def _is_current(job: Job, known: Mapping[str, Job]) -> bool:
    """Say whether a finished job is as the study has it now; one that cannot be named here may be."""
    own = {name: value for name, value in job.items() if name != "against"}  # that is the user's
    return known.get(own["name"], own) == own


def _run_one(run: Callable[[Job], dict[str, Any]], job: Job, folder: Path, threads: int | None) -> Record:
    began = time.monotonic()
    with limited_to(threads):
        metrics = run(job)
    arrays = metrics.pop("arrays", None)
    if arrays:
        with atomic.replacing(folder / f"{job['name']}.npz") as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)
    record: Record = {
        "job": job,
        "metrics": metrics,
        "digests": {name: digest(array) for name, array in (arrays or {}).items()},
        "seconds": round(time.monotonic() - began, 2),
        "versions": {
            "offmanifold": offmanifold.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
        },
        "hardware": {
            "machine": platform.machine(),
            "cores": cores(),
            "threads": threads or torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    atomic.write(folder / f"{job['name']}.json", json.dumps(record, indent=1) + "\n")
    return record
