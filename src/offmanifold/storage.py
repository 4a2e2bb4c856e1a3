"""One safetensors file a model: tensors and a JSON header. Nothing in it is executed or imported by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

import offmanifold
from offmanifold import atomic
from offmanifold.data.columns import Column
from offmanifold.data.inputs import InputSpec
from offmanifold.data.tables import Preparation, Standardiser
from offmanifold.detectors import DETECTORS, OutlierDetector
from offmanifold.detectors.levelling import Levelling
from offmanifold.measures.shift import Moments, compared_parts

FORMAT = "offmanifold"
# What is written; lower ones are read.
VERSION = 6
# Cells of these may be missing.
ROWS = "calibration/rows"
# How far a probe row's score may be off on another machine, where kernels round differently: as a share of itself, and
# of what scores of normal rows span.
PROBE_TOLERANCE = 1e-3


def save(detector: OutlierDetector, path: str | os.PathLike[str]) -> None:
    """Write a fitted detector to ``path``, whole or not at all.

    Where ``store_rows`` has been set to False after the fit, the calibration rows are left out.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If it has not been fitted.
    FileNotFoundError
        If there is no such folder.
    ValueError
        If ``store_rows`` is False and yet rows are part of the weights: fit again, then.
    """
    if not isinstance(detector, OutlierDetector):
        raise TypeError(f"save writes offmanifold's detectors, not others' ({type(detector).__name__}), nor pipelines.")
    check_is_fitted(detector, "module_")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {Path(path).parent} does not exist.")
    detector._check_common()  # what cannot be loaded is not saved
    beside = detector.calibration_rows_
    within = detector.stored_rows - (0 if beside is None else len(beside))
    if within and not detector.store_rows:
        raise ValueError(
            f"store_rows is False, but {within:,} rows are part of {type(detector).__name__}'s weights, since it was "
            "fitted with store_rows=True. Fit again with store_rows=False."
        )
    tensors = {f"module/{name}": tensor for name, tensor in detector.module_.state_dict().items()}
    tensors["calibration/scores"] = torch.from_numpy(detector.calibration_scores_)
    if beside is not None and detector.store_rows:
        tensors[ROWS] = torch.from_numpy(beside)
    if detector._standardiser is not None:
        tensors["standardiser/mean"] = torch.from_numpy(detector._standardiser.mean)
        tensors["standardiser/scale"] = torch.from_numpy(detector._standardiser.scale)
    if detector.training_moments_ is not None:
        moments = dataclasses.asdict(detector.training_moments_)
        known = {name: values for name, values in moments.items() if values is not None}
        tensors |= {f"training_moments/{name}": torch.from_numpy(values) for name, values in known.items()}
    if detector._levelling is not None:
        tensors |= {f"levelling/{name}": tensor for name, tensor in detector._levelling.tensors().items()}
    tensors["probes/rows"] = detector._probe_rows()
    tensors["probes/scores"] = torch.from_numpy(detector._probe_scores(tensors["probes/rows"]))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "version": VERSION,  # here it is under the digest as well
        "detector": detector.key,
        "parameters": _plain(detector.get_params()),
        "settings": detector.settings_,
        "input": detector.spec_.to_json(),
        "preparation": detector._standardiser.to_json() if isinstance(detector._standardiser, Preparation) else None,
        "rows": detector.rows_,
        "history": detector.history_,
        "fit_report": detector.fit_report_,
        "made_with": {
            "offmanifold": offmanifold.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    text = json.dumps(header)
    metadata = {"format": FORMAT, "version": str(VERSION), "header": text, "digest": _digest(text, tensors)}
    atomic.write(path, safetensors.torch.save(tensors, metadata))


def load(path: str | os.PathLike[str], *, device: str = "auto") -> OutlierDetector:
    """Read a detector that :func:`save` wrote.

    Parameters
    ----------
    path : path
    device : str
        Where to put it, whatever it was trained on.

    Raises
    ------
    ValueError
        Saying whether the file is missing, truncated, altered, from a newer version, or not ours; nothing else is ever
        raised for a bad file, and no file gives other scores than the detector that was saved.
    """
    path = Path(path)
    header, tensors = read(path)
    try:
        detector = _rebuild(header, tensors, device)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path} cannot be loaded: there is not memory enough for what it describes.") from error
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{path} is inconsistent: {error}") from error
    return detector


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors of a model file after checking format, version and digest."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except MemoryError as error:
        raise ValueError(f"{path} cannot be read: there is not memory enough for it.") from error
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: truncated, damaged or another format ({error})."
        ) from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not an offmanifold model.")
    version = str(metadata.get("version", ""))
    if not re.fullmatch("[0-9]{1,9}", version):
        raise ValueError(f"{path} is damaged: its version is {version!r}.")
    if int(version) > VERSION:
        raise ValueError(
            f"{path} is of format version {version}; this offmanifold ({offmanifold.__version__}) reads up to "
            f"{VERSION}. Upgrade offmanifold."
        )
    text = str(metadata.get("header", ""))
    if metadata.get("digest") != _digest(text, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its digest.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter for thousands of brackets
        raise ValueError(f"{path} is damaged: its header is not JSON.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is damaged: its header is not an object.")
    if str(header.get("version", version)) != version:  # files of before it was kept there have it once
        raise ValueError(f"{path} is damaged: it was not saved as version {version}.")
    return header, tensors


def _rebuild(header: dict[str, Any], tensors: dict[str, Tensor], device: str) -> OutlierDetector:
    key = header["detector"]
    if key not in DETECTORS:
        raise ValueError(f"it holds a detector {key!r}, which this version does not know.")
    detector = DETECTORS[key](**{**_tuples(header["parameters"]), "device": device})
    for name, tensor in tensors.items():
        known = tensor[~tensor.isnan()] if name == ROWS else tensor
        if known.is_floating_point() and not bool(torch.isfinite(known).all()):
            raise ValueError(f"its tensor {name!r} is not finite.")
    detector._check_common()
    detector.spec_ = InputSpec.from_json(header["input"])
    if detector.spec_.details is None and tuple(tensors["probes/rows"].shape[1:]) != detector.spec_.shape:
        raise ValueError("its probe rows do not fit its input.")
    detector.settings_ = header["settings"]
    detector.history_, detector.rows_ = header["history"], header["rows"]
    detector.fit_report_ = header.get("fit_report", {})  # files of before it was kept
    detector._standardiser = _preparation(header, tensors, detector)
    detector._set_input_attributes()
    detector._levelling = _levelling(tensors, detector)
    weights = _below("module/", tensors)
    _check_network(detector, weights)
    detector._load_weights(weights)
    scores = tensors["calibration/scores"].numpy()
    if scores.ndim != 1 or len(scores) == 0 or (np.diff(scores) < 0).any():
        raise ValueError("its calibration scores are not a sorted list.")
    detector.calibration_scores_ = scores
    detector.training_moments_ = _moments(tensors)
    detector.calibration_rows_ = _rows(tensors, detector)
    expected = tensors["probes/scores"].numpy()
    if len(expected) == 0:
        raise ValueError("it has no probe rows to be tried on.")
    found = detector._probe_scores(tensors["probes/rows"])
    span = min(1.0, float(np.ptp(np.quantile(scores, [0.1, 0.9]))))
    if not np.allclose(found, expected, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE * span):
        worst = float(np.abs(found - expected).max())
        raise ValueError(
            f"its probe rows score differently here (by up to {worst:.3g}); it would not give its own scores."
        )
    return detector


def _check_network(detector: OutlierDetector, weights: dict[str, Tensor]) -> None:
    """Compare the network that a file describes with the weights that it holds, before any of it is allocated."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = detector._build(detector._network_spec, detector.settings_)
    try:
        model.load_state_dict({name: tensor.to("meta") for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:  # lists every tensor
        raise ValueError("its weights do not fit the network that it describes.") from error


def _preparation(
    header: dict[str, Any], tensors: dict[str, Tensor], detector: OutlierDetector
) -> Standardiser | Preparation | None:
    spec, prepared = detector.spec_, header.get("preparation")  # files of before there were kinds
    if spec.details is not None and prepared is None:
        raise ValueError("it does not say how its columns are prepared.")
    if prepared is None and detector.settings_["scale"] is None:
        return None
    mean, scale = tensors["standardiser/mean"].numpy(), tensors["standardiser/scale"].numpy()
    standardiser = Standardiser(mean, scale)
    columns = spec.details or [Column(name) for name in spec.names]
    found = standardiser if prepared is None else Preparation.from_json(prepared, columns, standardiser)
    cells = spec.shape if isinstance(found, Standardiser) else found.owner.shape
    if mean.shape != cells or scale.shape != mean.shape or not (scale > 0).all():
        raise ValueError("its standardisation does not fit its input.")
    return found


def _levelling(tensors: dict[str, Tensor], detector: OutlierDetector) -> Levelling | None:
    """Return what compares rows with missing cells to complete ones; files of before it was kept have none."""
    held = _below("levelling/", tensors)
    if not held:
        return None
    levelling = Levelling(**held)
    if not levelling.fits(torch.from_numpy(detector._owner)):
        raise ValueError("what compares rows with missing cells does not fit its input.")
    return levelling


def _moments(tensors: dict[str, Tensor]) -> Moments | None:
    """Return what the rows of training were like; files of before it was kept do not say."""
    held = _below("training_moments/", tensors)
    if not held:
        return None
    parts = compared_parts(tensors["probes/rows"]).shape[1:]
    if any(tensor.shape != parts for tensor in held.values()):
        raise ValueError("what it says about its training rows does not fit its input.")
    return Moments(**{name: tensor.numpy() for name, tensor in held.items()})


def _rows(tensors: dict[str, Tensor], detector: OutlierDetector) -> npt.NDArray[Any] | None:
    """Return the calibration rows that the file holds."""
    if ROWS not in tensors:
        return None
    rows = tensors[ROWS]
    if rows.shape[1:] != detector.spec_.shape or not rows.is_floating_point():
        raise ValueError("the rows that it holds do not fit its input.")
    return rows.numpy()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Turn hyper-parameters into what JSON holds; a RandomState cannot be kept and becomes None."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.random.RandomState):
            return None
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {plain(key): plain(item) for key, item in value.items()}
        if isinstance(value, np.ndarray | list | tuple | range):
            return [plain(item) for item in value]
        return value

    return {name: plain(value) for name, value in parameters.items()}


def _tuples(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}
