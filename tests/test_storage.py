"""Model files: whole, ours and unaltered, or a ValueError that says which is not the case."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from conftest import QUICK, made
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline

from offmanifold import AE, NAE, VAE, MultiscaleDenoiser, atomic, diagnose, load, storage
from offmanifold.networks.network import Network


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory, plane: Any) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    AE(**QUICK).fit(plane[0]).save(path)
    return path


def sealed(header: dict[str, Any], tensors: dict[str, torch.Tensor], version: str = "1") -> bytes:
    """Write a file with a valid digest, as someone who means harm would."""
    text = json.dumps(header | {"version": int(version)})
    metadata = {
        "format": "offmanifold",
        "version": version,
        "header": text,
        "digest": storage._digest(text, tensors),
    }
    return safetensors.torch.save(tensors, metadata)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(model_file: Path, data: st.DataObject) -> None:
    content = bytearray(model_file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    # The header is short beside the tensors: look into both.
    end = 8 + length if data.draw(st.booleans()) else len(content)
    bit = data.draw(st.integers(0, 8 * end - 1))
    content[bit // 8] ^= 1 << bit % 8
    other = model_file.with_name("flipped.safetensors")
    other.write_bytes(content)
    with pytest.raises(ValueError, match="flipped.safetensors"):
        load(other)


def test_another_version_is_not_believed(model_file: Path) -> None:
    """One bit turns a 6 into a 4, which this version would read as well."""
    content = model_file.read_bytes()
    saved = f'"version":"{storage.VERSION}"'.encode()
    assert content.count(saved) == 1
    other = model_file.with_name("older.safetensors")
    other.write_bytes(content.replace(saved, f'"version":"{storage.VERSION - 2}"'.encode()))
    with pytest.raises(ValueError, match=r"older\.safetensors is damaged: it was not saved as version"):
        load(other)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_truncated_file_goes_unnoticed(model_file: Path, data: st.DataObject) -> None:
    content = model_file.read_bytes()
    other = model_file.with_name("short.safetensors")
    other.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match="truncated, damaged or another format|is not an offmanifold model"):
        load(other)


def test_foreign_newer_and_missing_files(model_file: Path, tmp_path: Path) -> None:
    header, tensors = storage.read(model_file)
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="does not exist"):
        load(path)
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load(tmp_path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    with pytest.raises(ValueError, match="is not an offmanifold model"):
        load(path)
    path.write_bytes(sealed(header, tensors, version="7"))
    with pytest.raises(ValueError, match="format version 7; this offmanifold .* reads up to 6. Upgrade"):
        load(path)
    path.write_bytes(sealed(header, tensors))
    assert load(path).key == "ae"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(detector="os.system"), "holds a detector 'os.system'"),
        (lambda h, t: h.pop("settings"), "inconsistent: 'settings'"),
        (lambda h, t: h["settings"].update(hidden=[64]), "weights do not fit the network"),
        (lambda h, t: h["settings"].update(network="conv28"), "takes images"),
        (lambda h, t: h["settings"].update(hidden=[60_000, 60_000]), "weights do not fit the network"),
        (lambda h, t: h["input"].update(shape=[9]), "its probe rows do not fit its input"),
        (lambda h, t: h["input"].update(shape=[10**15]), "its probe rows do not fit its input"),
        (lambda h, t: h["parameters"].update(extra=1), "inconsistent: .*extra"),
        (lambda h, t: h["parameters"].update(batch_size=-1), "batch_size"),
        (lambda h, t: h["parameters"].update(false_alarm_rate=10**400), "inconsistent|false_alarm_rate"),
        (lambda h, t: t["calibration/scores"].fill_(float("nan")), "'calibration/scores' is not finite"),
        (lambda h, t: t["calibration/scores"].copy_(t["calibration/scores"].flip(0)), "not a sorted list"),
        (lambda h, t: t.update({"calibration/scores": torch.zeros(2, 3)}), "not a sorted list"),
        (lambda h, t: t.update({"calibration/scores": torch.zeros(0)}), "not a sorted list"),
        (lambda h, t: t["probes/scores"].mul_(1.01), "probe rows score differently here"),
        (lambda h, t: t.update({"standardiser/mean": torch.zeros(1), "standardiser/scale": torch.ones(1)}),
         "standardisation does not fit"),
        (lambda h, t: t["calibration/rows"].fill_(float("inf")), "'calibration/rows' is not finite"),
        (lambda h, t: t.update({"calibration/rows": torch.zeros(3, 4)}), "rows that it holds do not fit"),
        (lambda h, t: t.pop("probes/rows"), "inconsistent: 'probes/rows'"),
        (lambda h, t: t["standardiser/scale"].zero_(), "standardisation does not fit"),
        (lambda h, t: t.update({"training_moments/mean": torch.zeros(1)}), "about its training rows does not fit"),
        (lambda h, t: t.update({"levelling/found": torch.zeros(2, 3)}), "missing cells does not fit"),
        (lambda h, t: t["levelling/owner"].add_(1), "missing cells does not fit"),
        (lambda h, t: t.update({"probes/rows": torch.zeros(0, 5), "probes/scores": torch.zeros(0)}), "no probe rows"),
        (lambda h, t: h["settings"].update(latent_dim=0), "inconsistent|cannot be loaded"),
        (lambda h, t: t["module/decoder.body.0.weight"].mul_(1.1), "probe rows score differently here"),
        (lambda h, t: t.update({"module/other": torch.zeros(1)}), "weights do not fit the network"),
    ],
)  # fmt: skip
def test_a_resealed_file_must_still_make_sense(model_file: Path, tmp_path: Path, change: Any, message: str) -> None:
    header, tensors = storage.read(model_file)
    change(header, tensors)
    path = tmp_path / "x.safetensors"
    path.write_bytes(sealed(header, tensors))
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000])
def test_a_header_of_brackets_is_refused(model_file: Path, tmp_path: Path, text: str) -> None:
    tensors = storage.read(model_file)[1]
    metadata = {"format": "offmanifold", "version": "6", "header": text, "digest": storage._digest(text, tensors)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(ValueError, match="x.safetensors is damaged: its header is not JSON"):
        load(path)


@pytest.mark.parametrize("version", ["", "²", "-1", "9" * 5000])
def test_a_version_that_is_no_number_is_refused(model_file: Path, tmp_path: Path, version: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save(storage.read(model_file)[1], {"format": "offmanifold", "version": version}))
    with pytest.raises(ValueError, match="x.safetensors is damaged: its version is"):
        load(path)


def test_a_network_too_large_for_its_file_is_never_allocated(model_file: Path, tmp_path: Path) -> None:
    """It would take 14 GB, in a process that is given 1 GB more than it has."""
    header, tensors = storage.read(model_file)
    header["settings"]["hidden"] = [60_000, 60_000]
    (tmp_path / "x.safetensors").write_bytes(sealed(header, tensors))
    code = (
        "import resource, offmanifold.storage as s\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try: s.load('x.safetensors', device='cpu')\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "x.safetensors cannot be loaded: its weights do not fit the network" in done.stdout


def test_a_failed_save_leaves_the_earlier_file(model_file: Path, tmp_path: Path, plane: Any) -> None:
    """A full disk, simulated by a limit on the size of files."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_file.read_bytes())
    before = hashlib.sha256(path.read_bytes()).digest()
    detector = VAE(**QUICK).fit(plane[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError):
            detector.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert list(tmp_path.iterdir()) == [path]
    detector.save(path)
    assert load(path).key == "vae"


def test_what_cannot_be_saved(tmp_path: Path, plane: Any) -> None:
    detector = AE(**QUICK).fit(plane[0])
    with pytest.raises(TypeError, match=r"save writes offmanifold's detectors, not others' \(Pipeline\)"):
        storage.save(make_pipeline(detector), tmp_path / "p.safetensors")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no/m.safetensors cannot be written: the folder .*no does not exist"):
        detector.save(tmp_path / "no" / "m.safetensors")


def test_atomic_writes_keep_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    atomic.write(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(RuntimeError), atomic.replacing(tmp_path / "ours") as part:
        part.write_text("half")
        raise RuntimeError
    assert (tmp_path / "ours").read_text() == "x"
    for mode in (0o600, 0o640, 0o664):
        (tmp_path / "ours").chmod(mode)
        atomic.write(tmp_path / "ours", "y")
        assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == mode


def test_what_a_link_leads_to_is_replaced_and_what_is_no_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no ordinary file: it cannot be replaced"):
        atomic.write(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_larger_than_memory_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "vast.safetensors").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(ValueError, match="cannot be read: there is not memory enough"):
        load(tmp_path / "vast.safetensors")


def test_models_of_images_and_of_frames_come_back(tmp_path: Path, plane: Any, digits: Any) -> None:
    images = digits[0][:200]
    detector = VAE(**QUICK, likelihood="bernoulli").fit(images)
    detector.save(tmp_path / "i.safetensors")
    loaded = load(tmp_path / "i.safetensors")
    np.testing.assert_array_equal(loaded.sample(3, random_state=1), detector.sample(3, random_state=1))
    np.testing.assert_array_equal(loaded.reconstruct(images), detector.reconstruct(images))
    frame = pl.DataFrame(plane[0], schema=list("abcde"), orient="row")
    AE(**QUICK, scale=None).fit(frame).save(tmp_path / "f.safetensors")
    loaded = load(tmp_path / "f.safetensors")
    assert loaded.feature_names_in_.tolist() == list("abcde")
    assert loaded.n_features_in_ == 5
    with pytest.raises(ValueError, match="missing: 'a'"):
        loaded.score_samples(frame.drop("a"))


def test_calibration_rows_come_along_unless_they_must_not(tmp_path: Path, plane: Any, digits: Any) -> None:
    """As numbers, with what is missing of them."""
    gappy = np.where(np.random.default_rng(0).random(plane[0].shape) < 0.1, np.nan, plane[0])
    mixed = pl.DataFrame({"a": plane[0][:, 0], "kind": np.array(list("abcd") * 100)})
    for rows in (plane[0], gappy, mixed, digits[0][:200]):
        detector = AE(**QUICK).fit(rows)
        kept = detector.calibration_rows_
        assert kept is not None and len(kept) == detector.stored_rows == detector.rows_["calibration"]
        np.testing.assert_array_equal(
            np.sort(detector.score_samples(detector.spec_.present(kept))), detector.calibration_scores_
        )
        detector.save(tmp_path / "m.safetensors")
        np.testing.assert_array_equal(load(tmp_path / "m.safetensors").calibration_rows_, kept)
        detector.set_params(store_rows=False).save(tmp_path / "m.safetensors")
        assert load(tmp_path / "m.safetensors").stored_rows == 0, "changed one's mind"
        detector = AE(**QUICK, store_rows=False).fit(rows)
        detector.save(tmp_path / "m.safetensors")
        assert detector.stored_rows == 0 and load(tmp_path / "m.safetensors").calibration_rows_ is None
    wide = AE(**QUICK | {"steps": 1, "network": "mlp", "hidden": (4,)}).fit(np.zeros((40, 1, 300, 300), np.uint8))
    assert wide.stored_rows == 2**20 // 300**2 < wide.rows_["calibration"]
    with pytest.raises(TypeError, match="store_rows must be True or False"):
        AE(store_rows="no").fit(plane[0])


def test_a_denoiser_of_before_format_5_says_so(tmp_path: Path, plane: Any) -> None:
    """It compared rows with stored ones otherwise: nothing in this version gives its scores."""
    path = tmp_path / "model.safetensors"
    MultiscaleDenoiser(hidden=(8,), steps=2, verbose=False).fit(plane[0][:60]).save(path)
    header, tensors = storage.read(path)
    header["settings"]["empirical_levels"] = header["settings"].pop("stored_levels")
    tensors["module/rows"] = tensors.pop("module/stored.rows")
    path.write_bytes(sealed(header, tensors, version="4"))
    with pytest.raises(ValueError, match="cannot be loaded: it was saved by a version that .* Fit it again"):
        load(path)


def test_a_file_of_before_codes_were_kept_is_read(tmp_path: Path, plane: Any) -> None:
    """Its chains of samples start from the prior, as they did."""
    rows = plane[0][:, :2]
    path, detector = tmp_path / "model.safetensors", made(NAE, preset="2d", adjusted=False, network="mlp").fit(rows)
    detector.save(path)
    header, tensors = storage.read(path)
    del header["settings"]["kept_codes"], header["settings"]["starts_at_codes"], tensors["module/codes"]
    path.write_bytes(sealed(header, tensors, version="5"))
    old = load(path)
    np.testing.assert_array_equal(old.score_samples(rows), detector.score_samples(rows))
    drawn = [model.sample(4, latent_steps=0, visible_steps=0, random_state=0) for model in (old, detector)]
    assert not np.array_equal(*drawn)


def test_a_file_of_before_skewness_was_kept_is_read_and_written(tmp_path: Path, plane: Any) -> None:
    detector = AE(**QUICK).fit(plane[0])
    assert detector.training_moments_ is not None
    detector.training_moments_ = dataclasses.replace(detector.training_moments_, skewness=None)
    for name in ("a", "b"):
        detector.save(tmp_path / name)
        detector = load(tmp_path / name)
        assert detector.training_moments_.skewness is None
    assert diagnose(detector, plane[0], checks=["drift"])["drift"].verdict == "fine"


def test_rows_that_are_part_of_the_weights_cannot_be_left_out_afterwards(tmp_path: Path, plane: Any) -> None:
    detector = MultiscaleDenoiser(**QUICK).fit(plane[0])
    with pytest.raises(ValueError, match=r"[0-9]+ rows are part of MultiscaleDenoiser's weights, .* Fit again"):
        detector.set_params(store_rows=False).save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_random_state_object_is_not_stored(tmp_path: Path, plane: Any) -> None:
    detector = AE(**(QUICK | {"random_state": np.random.RandomState(0)})).fit(plane[0])
    detector.save(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").random_state is None


def test_a_file_that_gives_other_scores_to_normal_rows_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise is far off; what is learned scores a ten-thousandth of it, and hangs on other digits of the weights."""
    smooth = (
        np.outer(np.linspace(0.2, 0.8, 8), np.linspace(0.2, 0.8, 8))[None] + np.linspace(0, 0.1, 200)[:, None, None]
    )
    detector = AE(steps=200, random_state=0, verbose=False).fit(smooth)
    detector.save(tmp_path / "m.safetensors")
    load(tmp_path / "m.safetensors")
    plain, forward = detector.score_samples(smooth), Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, rows: forward(self, rows) + 0.0005)
    assert np.abs(detector.score_samples(smooth) / plain - 1).max() > 0.01
    with pytest.raises(ValueError, match="its probe rows score differently here"):
        load(tmp_path / "m.safetensors")
