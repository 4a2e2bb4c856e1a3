"""Studies: a table or figure of a paper, as independent jobs whose results are files."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import platform
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import offmanifold
from offmanifold import atomic, parameters
from offmanifold.data.benchmarks import DataMissing
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors import DETECTORS, OutlierDetector
from offmanifold.detectors.chains import families_to_watch
from offmanifold.measures.estimates import mean_of
from offmanifold.measures.plain import Components, Neighbours
from offmanifold.training.threads import cores, limited_to, share

SCALES = ("smoke", "laptop", "paper")
SEEDS = {"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2)}
# Data by whose form a digest of settings has every "auto" resolved.
FORMS = (
    InputSpec("table", (10,), "columns"), InputSpec("image", (1, 28, 28), "hw"), InputSpec("image", (3, 32, 32), "hwc"),
)  # fmt: skip
Job = dict[str, Any]
Array = npt.NDArray[Any]
Record = dict[str, Any]


def detectors_named(job: Job) -> list[OutlierDetector]:
    """Return the detector that a job names, not fitted, or none."""
    key = job.get("detector")
    return [DETECTORS[key](**job["parameters"])] if key else []


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
    detectors : job → detectors
        What a job trains: where their defaults have changed since, it is done again.
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
    detectors: Callable[[Job], Sequence[OutlierDetector]] = detectors_named


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
        Further kinds of images to score, for a study that takes them. A job with others than before, or whose files
        have changed, is done again.
    report : callable
        Is told about progress.

    Raises
    ------
    RuntimeError
        Once all other jobs are done and the table is written, where some failed.
    DataMissing
        The same, where the data of some are not here.
    """
    if against and not study.against:
        raise ValueError(f"{study.name} compares fixed kinds of rows; it takes no others (got {', '.join(against)}).")
    folder = folder_of(study, scale, results)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = study.seeds[scale] if seeds is None else seeds
    all_jobs = [job for seed in chosen for job in study.jobs(scale, seed) if fnmatch.fnmatch(job["name"], only)]
    if against:
        content = {name: {"path": path, "digest": _digest_of(Path(path))} for name, path in against.items()}
        all_jobs = [job | {"against": content} for job in all_jobs]
    if not all_jobs:
        names = ", ".join(job["name"] for job in study.jobs(scale, chosen[0]))
        raise ValueError(f"No job of {study.name} at scale {scale} matches {only!r}. They are: {names}.")
    waiting = [job for job in all_jobs if not _is_finished(study, folder, job)]
    done = len(all_jobs) - len(waiting)
    if done:
        report(f"{done} of {len(all_jobs)} jobs were done before.")
    failed: dict[str, Exception] = {}

    def finish(job: Job, outcome: Callable[[], Record]) -> None:
        """Tell of a job; one that fails is a row that is missing, not the end of the others."""
        nonlocal done
        try:
            told = f"{outcome()['seconds']:.0f} s"
        except BrokenProcessPool:
            raise
        except Exception as error:
            failed[job["name"]], told = error, f"{type(error).__name__}: {error}"
        done += 1
        report(f"[{done}/{len(all_jobs)}] {job['name']}: {told}")

    if jobs == 1:
        for job in waiting:
            report(f"[{done + 1}/{len(all_jobs)}] {job['name']} …")
            finish(job, functools.partial(_run_one, study.run, job, _defaults(study, job), folder, None))
    elif waiting:
        # Fresh processes: a forked one inherits PyTorch's thread pool in an unusable state.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            pending = dict[Future[Record], Job]()
            for job in waiting:
                pending[pool.submit(_run_one, study.run, job, _defaults(study, job), folder, share(jobs))] = job
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    finish(pending.pop(future), future.result)
    records = summarise(study, scale, results=results, report=report)
    if failed:
        # In the jobs' own order: side by side they fail in any.
        without = [job["name"] for job in waiting if job["name"] in failed]
        first = failed[without[0]]
        text = (
            f"{len(failed)} of {len(all_jobs)} jobs failed, and the table is without them: {', '.join(without)}. "
            f"First: {type(first).__name__}: {first}"
        )
        missing = all(isinstance(error, DataMissing) for error in failed.values())
        raise (DataMissing if missing else RuntimeError)(text) from first
    return records


def summarise(
    study: Study, scale: str, *, results: Path = Path("results"), report: Callable[[str], None] = lambda text: None
) -> list[Record]:
    """Write table and figure from the result files alone, and return the records.

    Results of jobs that have other settings by now are left out, and damaged files; ``report`` is told, and how many
    jobs there are yet to do.
    """
    folder = folder_of(study, scale, results)
    again = f"`offmanifold study run {study.name} --scale {scale}` does them again."
    paths = sorted(folder.glob("*.json"))
    found = {path: _read(path) for path in paths}
    damaged = [path.name for path, record in found.items() if record is None]
    if damaged:
        report(f"Left out, for they are damaged or no results: {', '.join(damaged)} in {folder}. {again}")
    seeds = {record["job"]["seed"] for record in found.values() if record}.union(study.seeds[scale])
    known = {seed: _jobs_by_name(study, scale, seed) for seed in seeds}
    records, outdated = list[Record](), list[str]()
    for record in found.values():
        if record and _is_current(study, record, known[record["job"]["seed"]]):
            records.append(record)
        elif record:
            outdated.append(record["job"]["name"])
    if outdated:
        report(f"Left out, for these jobs have other settings by now: {', '.join(outdated)}. {again}")
    if records:
        wanted = {name for seed in study.seeds[scale] for name in known[seed]}
        missing = wanted - {record["job"]["name"] for record in records}
        if missing:
            report(f"Jobs without a result yet: {len(missing)} of {len(wanted)}.")
        atomic.write(folder / "table.md", study.table(records))
        study.figure(records, folder / "figure.png")
    return records


def _read(path: Path) -> Record | None:
    """Return the record of a result file; none where it or the arrays beside it are damaged, or it is another's."""
    try:
        record: Record = json.loads(path.read_text()) | {"_folder": str(path.parent)}
        whole = record["job"]["name"] == path.stem and isinstance(record["job"]["seed"], int) and record["metrics"]
        arrays = arrays_of(record) if record["digests"] else {}
        alike = record["digests"] == {name: digest(array) for name, array in arrays.items()}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    return record if whole and alike else None


def arrays_of(record: Record) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays stored beside a record."""
    path = Path(record["_folder"]) / f"{record['job']['name']}.npz"
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and Student's 95 % interval over seeds (the mean alone for one seed)."""
    if len(values) == 1:
        return (values[0],) * 3
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


def shown(values: Sequence[float], *, share: bool = False, least: float = 0.0) -> str:
    """Return the mean over seeds as tables show it: with its interval where there are several, "–" where none.

    Three decimals, more for small numbers and fewer for large ones. A ``share`` (an AUROC; from ``least`` to 1) has
    three, and an interval within these bounds, which Student's does not know of.
    """
    if not values:
        return "–"
    mean, low, high = over_seeds(values)
    size = abs(mean)
    decimals = 3 if share or 0.1 <= size < 10 or size == 0 else 4 if size < 0.1 else 1 if size < 100 else 0
    if share:
        low, high = np.clip([low, high], least, 1)
    interval = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if len(values) > 1 else ""
    return f"{mean:.{decimals}f}{interval}"


def watched_by(kind: str, watch: Sequence[str] | str = "auto") -> str:
    """Return the sentence that says by which made outliers of "image" or "table" data training was watched."""
    return f"Training against samples was watched by made outliers: {', '.join(families_to_watch(watch, kind))}."


def slug(row: str) -> str:
    """Return a row's name as it stands in file names: "VAE(L)" → "vae-l"."""
    return row.lower().replace("(", "-").replace(")", "")


def _is_finished(study: Study, folder: Path, job: Job) -> bool:
    record = _read(folder / f"{job['name']}.json")
    if record is None:
        return False
    done = record["job"] if "against" in job else _without_against(record["job"])
    return done == _as_stored(job) and record.get("defaults") == _defaults(study, job)


def _without_against(job: Job) -> Job:
    """Return a job without the kinds of images that its user brought."""
    return {name: value for name, value in job.items() if name != "against"}


def _defaults(study: Study, job: Job) -> str:
    """Return a digest of what a job's detectors are trained by, every "auto" resolved for data of each form."""
    found = []
    for detector in study.detectors(job):
        for spec in FORMS:
            with contextlib.suppress(parameters.InvalidParameter):  # it is for data of other forms
                found.append(detector._resolved(spec, 1000))
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _digest_of(path: Path) -> str:
    """Return a digest of a file, or of the names and files in a folder."""
    whole = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            whole.update(file.name.encode())
            with file.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:16]


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


def _is_current(study: Study, record: Record, known: Mapping[str, Job]) -> bool:
    """Say whether a finished job is as the study has it now; one that cannot be named here, by its detectors alone."""
    own = _without_against(record["job"])
    try:
        defaults = _defaults(study, own)
    except (ValueError, TypeError, KeyError):  # no such detector or parameter any more
        return False
    return known.get(own["name"], own) == own and record.get("defaults") == defaults


def _run_one(
    run: Callable[[Job], dict[str, Any]], job: Job, defaults: str, folder: Path, threads: int | None
) -> Record:
    began = time.monotonic()
    with limited_to(threads):
        metrics = run(job)
    arrays = metrics.pop("arrays", None)
    if arrays:
        with atomic.replacing(folder / f"{job['name']}.npz") as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)
    record: Record = {
        "job": job,
        "defaults": defaults,
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
