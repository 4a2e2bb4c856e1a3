"""``offmanifold inspect``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    from offmanifold.detectors import OutlierDetector


def inspect(
    model: common.ModelArgument,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA", help="Normal rows to measure the model on, best ones it never saw."),
    ] = None,
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Say what a model is, what it was learned on, and what it can promise.

    With [bold]--data[/bold] also how well it reconstructs these rows, what each latent tells about one, and whether
    the codes follow their prior.

    [bold]Examples[/bold]

      offmanifold inspect model.safetensors

      offmanifold inspect model.safetensors --data held-out.csv
    """
    common.check_has_data(data, array, drop)
    detector = common.load_model(model)
    from offmanifold.storage import read

    header, _ = read(model)
    facts = _facts(detector, header)
    if data is not None:
        facts["on_data"] = _measured(detector, common.loaded(common.open_for(detector, data, array, drop)))
    if as_json:
        common.print_json({**facts, "history": detector.history_})
        return
    phases = {f"training, {phase}": told for phase, told in facts.pop("training").items()}
    told = facts.pop("answers")
    kinds = facts["columns"]
    if isinstance(kinds, dict):
        facts["columns"] = "see below"
    on_data = {f"on data, {name}": value for name, value in _flat(facts.pop("on_data", {})).items()}
    rows = [[name.replace("_", " "), _shown(value)] for name, value in (facts | phases | told | on_data).items()]
    common.table(str(model), ["", ""], rows)
    if isinstance(kinds, dict):
        common.table("\ncolumns", ["", "taken for"], [[name, kind] for name, kind in kinds.items()])


def _facts(detector: OutlierDetector, header: dict[str, Any]) -> dict[str, Any]:
    from offmanifold import calibration
    from offmanifold.diagnosis.answers import answers

    count = len(detector.calibration_scores_)
    facts: dict[str, Any] = {
        "detector": detector.key,
        "input": detector.spec_.describe(),
        "columns": _columns(detector),
        **({"columns_left_out": list(detector.spec_.ignored)} if detector.spec_.ignored else {}),
        "rows": detector.rows_,
        "rows_in_the_model_file": detector.stored_rows,
        "settings": detector.settings_,
        "network_parameters": sum(p.numel() for p in detector.module_.parameters()),
        "training": detector.training_summary(),
        "score_unit": detector.score_unit,
        "calibration": {
            "rows": count,
            "false_alarm_rate": detector.false_alarm_rate,
            "rate_in_95_of_100_fits": list(calibration.rate_range(count, detector.false_alarm_rate)),
            "smallest_rate": calibration.smallest_rate(count),
            "threshold": detector.offset_,
        },
        "probes": "16 random rows score here as they did when the model was saved",
        "made_with": header["made_with"],
    }
    facts |= {name: facts_of_fit for name, facts_of_fit in detector.fit_report_.items() if name != "score"}
    if "latents" in facts:
        facts["latents"] = facts["latents"] | {"kl": [round(value, 3) for value in facts["latents"]["kl"]]}
    facts["answers"] = answers(detector)
    return facts


def _columns(detector: OutlierDetector) -> dict[str, str] | list[str] | None:
    """Return what columns were taken for, their names alone where all are plain numbers."""
    from offmanifold.data.tables import Preparation

    if isinstance(detector._standardiser, Preparation):
        return detector._standardiser.describe()
    return list(detector.spec_.columns) if detector.spec_.columns else None


def _measured(detector: OutlierDetector, rows: Any) -> dict[str, Any]:
    from offmanifold.measures import latent_report

    found = latent_report(detector, rows)
    if not found:
        raise ValueError(
            f"{detector.key} neither reconstructs rows nor has latents: there is nothing to measure on --data."
        )
    return {"rows": len(rows), **found}


def _flat(measured: dict[str, Any]) -> dict[str, Any]:
    """Return measures for the terminal: one line each, the latents' with few digits."""
    latents = measured.get("latents", {})
    names = {
        "active": "active latents", "latent": "latents by KL", "kl": "their KL (nats)",
        "low": "their information, at least", "high": "at most", "kraskov": "by Kraskov's estimator",
    }  # fmt: skip
    lines = {
        name: [round(item, 3) + 0.0 for item in latents[key]] if key != "active" else latents[key]
        for key, name in names.items()
        if key in latents
    }
    told = {"posterior_gap": "posterior gap: log p(x) less the ELBO (nats)"}
    return {told.get(name, name): value for name, value in measured.items() if name != "latents"} | lines


def _shown(value: Any) -> str:
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return f"{_shown(value['value'])} [{_shown(value['low'])}, {_shown(value['high'])}]"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return "none can be" if math.isinf(value) else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        shown = ", ".join(map(_shown, value[:12]))
        return shown + (f" … ({len(value)})" if len(value) > 12 else "")
    return {None: "–", True: "yes", False: "no"}.get(value, str(value)) if value in (None, True, False) else str(value)
