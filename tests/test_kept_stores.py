"""Stores of earlier versions open, resume and score as they did.

Each archive in `data/` holds stores that a version wrote (its name says which), and in `answers.npz` what that version
read from them. `ci/kept_stores.py` writes such an archive; the verbs of their time wrote the two oldest, and there were
no other kinds of stores then. There is an archive of every format in `docs/records.md`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import xdan

ARCHIVES = sorted((Path(__file__).parent / "data").glob("*.zip"))
NETWORKS = ("network", "linear", "ensemble", "memory", "committee")
OTHER_EVERY_TIME = ("seconds", "training_seconds")

RELATIVE, ABSOLUTE = 2e-4, 2e-5  # of single precision, over few cycles
# With an operator innovations are compared with the variance of H(x) over 64 states of the climate, which spin up in
# double precision. Logarithms and sines of the first draws differ in their last bit between processors, and a spin-up
# makes another state of one with such a bit: some 1 of the 64. This changes the variance by 0.1 to 5 %.
RELATIVE_OF = {("operator", "innovation_ratio"): 5e-2}

Answer = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", autouse=True)
def small_validation() -> None:
    """None: earlier versions validated on more."""


def opened(store: Path) -> xr.Dataset:
    return xr.open_zarr(store, consolidated=False)


def values(result: xr.Dataset | xr.DataArray) -> Answer:
    ds = result.to_dataset(name="value") if isinstance(result, xr.DataArray) else result
    arrays = {str(name): v.values for name, v in ds.load().variables.items() if name not in OTHER_EVERY_TIME}
    plain = {name: array for name, array in arrays.items() if array.dtype.kind in "fiubU"}
    return plain | {name: np.array([str(x) for x in arrays[name].flat]) for name in arrays.keys() - plain.keys()}


def run(folder: Path, name: str) -> Answer:
    ds = opened(folder / "twin").isel(time=slice(0, 6))  # few cycles: rounding grows with every one
    result = ds.dan.cycle(xdan.open_network(folder / name))
    return values(result) | values(ds.dan.score(result, dim=[]))


def in_words_of_today(answer: Answer) -> Answer:
    """An answer of an early version, whose `crps` of a run without a spread is the mean absolute error of today."""
    if not (np.asarray(answer.get("crps_of", "members")) == "analysis").all():
        return answer
    renamed = {"crps": "mean_absolute_error"}
    return {renamed.get(key, key): value for key, value in answer.items() if key != "crps_of"}


def weights(folder: Path, name: str) -> Answer:
    net = xdan.open_network(folder / name)
    return {"digest": np.array(net.digest), **({} if net.history is None else values(net.history))}


def resumed_run(folder: Path) -> Answer:
    """An ensemble's run whose first blocks are done."""
    before = {
        path: path.read_bytes() for path in (folder / "unfinished" / "analysis" / "c").rglob("0") if path.is_file()
    }
    ds = opened(folder / "twin").chunk(time=5)
    ds.dan.baseline("etkf", members=5, store=folder / "unfinished", progress=False)
    assert before
    assert all(path.read_bytes() == content for path, content in before.items())
    return values(opened(folder / "unfinished"))


def finite_size(folder: Path, name: str) -> Answer:
    """A run of before `innovation_ratio`, and of before chunks of nothing but False were written."""
    return values(opened(folder / name))


def resumed_finite_size(folder: Path) -> Answer:
    """A run that began before runs had an `innovation_ratio`."""
    ds = opened(folder / "twin").chunk(time=5)
    with pytest.warns(xdan.XdanWarning, match=r"earlier version, which kept no \['innovation_ratio'\]"):
        ds.dan.baseline("enkf-n", members=5, store=folder / "unfinished", progress=False)
    return finite_size(folder, "unfinished")


def estimates(folder: Path) -> Answer:
    """The variances of an estimate of errors."""
    return values(opened(folder / "estimate"))


def steps(folder: Path) -> Answer:
    """Steps of a model with a learned correction."""
    model = xdan.open_dynamics(folder / "dynamics")
    return {"step": model.step(torch.linspace(-5, 10, 16).reshape(2, 8)).numpy()}


def resumed_training(folder: Path) -> Answer:
    """A training of 14 steps that ended after some of them."""
    architecture = xdan.ResidualCNN(filters=3, blocks=1, kernel=3)
    settings: dict[str, Any] = {"window": 2, "batch": 2, "progress": False, "processes": 1}
    settings |= {"steps": 14, "validate_every": 5, "seed": 3}
    ds = opened(folder / "twin")
    net = ds.dan.train(architecture, checkpoint=folder / "checkpoint", **settings)
    assert net.history is not None
    return values(net.history) | {"validation": np.array(net.description["training"]["validation_rmse"])}


def resumed_sweep(folder: Path) -> Answer:
    """A sweep whose cells are done."""
    schemes: dict[str, Any] = {
        "network": {
            "network": "residual-cnn",
            "filters": 3,
            "blocks": 1,
            "kernel": 3,
            "steps": 2,
            "batch": 2,
            "window": 2,
        },
        "ensemble": {"baseline": "etkf", "members": 5},
    }
    settings: dict[str, Any] = {"cycles": 8, "trajectories": 2, "burn_in": 1, "progress": False}
    cube = xdan.sweep(xdan.Lorenz96(sites=8), schemes, store=folder / "sweep", **settings)
    assert not cube["failed"].any()
    return values(cube)


def gains(folder: Path, name: str) -> Answer:
    ds, net = opened(folder / "twin").isel(time=slice(0, 3)), xdan.open_network(folder / name)
    return values(ds.dan.gain(net, kind="mean")) | {
        f"covariance_{key}": value for key, value in values(ds.dan.gain(net, kind="covariance")).items()
    }


READS: Mapping[str, Callable[[Path], Answer]] = {
    **{f"weights of {name}": lambda folder, name=name: weights(folder, name) for name in NETWORKS},  # type: ignore[misc]
    **{f"run of {name}": lambda folder, name=name: run(folder, name) for name in NETWORKS},  # type: ignore[misc]
    **{f"gains of {name}": lambda folder, name=name: gains(folder, name) for name in ("network", "linear")},  # type: ignore[misc]
    "score": lambda folder: values(opened(folder / "twin").dan.score(opened(folder / "run"), dim=[])),
    "ranks": lambda folder: values(opened(folder / "twin").dan.rank_histogram(opened(folder / "run"))),
    "every second site": lambda folder: values(opened(folder / "consolidated").dan.baseline("3d-var", scale=0.02)),
    "operator": lambda folder: values(opened(folder / "operator").dan.baseline("enkf-n", members=6)),
    "spectrum": lambda folder: values(xdan.covariance_spectrum(opened(folder / "gain")["analysis_covariance"])),
    "resumed run": resumed_run,
    "resumed training": resumed_training,
    "resumed sweep": resumed_sweep,
    "finite-size run": lambda folder: finite_size(folder, "run"),
    "score of finite-size run": lambda folder: values(opened(folder / "twin").dan.score(opened(folder / "run"))),
    "resumed finite-size run": resumed_finite_size,
    "estimate": estimates,
    "dynamics": steps,
}


def names(archive: Path) -> list[str]:
    """What the version that wrote an archive read from it."""
    with zipfile.ZipFile(archive) as opened_archive, opened_archive.open("answers.npz") as file, np.load(file) as kept:
        return sorted({key.partition(": ")[0] for key in kept.files})


CASES = [(archive, name) for archive in ARCHIVES for name in names(archive)]
# What is read from every archive in the quick tests; the rest is read from one archive there.
OF_EVERY_ARCHIVE = ("weights of network", "score", "resumed run", "finite-size run")
FIRST = {name: archive for archive, name in reversed(CASES)}


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as whole:
        whole.extractall(folder)
    return folder


def test_archives_hold_every_kind_and_read() -> None:
    """A version whose archive lacks a kind of store could break it unseen."""
    assert {"before-checksums", "before-packed-checkpoints", "before-wings", "format-2"} <= {p.stem for p in ARCHIVES}
    assert set(READS) == {name for _, name in CASES}
    newest = set(names(ARCHIVES[0].with_name("format-2.zip")))
    assert set(READS) - newest == {name for name in READS if "finite-size" in name}


def marked(archive: Path, name: str) -> Any:
    slow = archive != FIRST[name] and name not in OF_EVERY_ARCHIVE
    return pytest.param(archive, name, id=f"{archive.stem}-{name}", marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("archive", "name"), [marked(*case) for case in CASES])
def test_kept_stores_read_as_they_did(archive: Path, name: str, tmp_path: Path) -> None:
    folder = unpacked(archive, tmp_path / "stores")
    answer = READS[name](folder)
    prefix = f"{name}: "
    with np.load(folder / "answers.npz") as kept:
        expected = {key[len(prefix) :]: kept[key] for key in kept.files if key.startswith(prefix)}
    expected = in_words_of_today(expected)
    assert expected
    assert set(expected) <= set(answer)
    for key, array in expected.items():
        if array.dtype.kind == "f":
            relative = RELATIVE_OF.get((name, key), RELATIVE)
            np.testing.assert_allclose(answer[key], array, rtol=relative, atol=ABSOLUTE, err_msg=key)
        else:
            np.testing.assert_array_equal(answer[key], array, err_msg=key)


def test_what_began_before_packed_checkpoints_is_refused_not_changed(tmp_path: Path) -> None:
    """The identity of a run and of a training was another one on the first day."""
    folder = unpacked(ARCHIVES[0].with_name("before-packed-checkpoints.zip"), tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="holds an unfinished run of another method, record or setting"):
        opened(folder / "twin").chunk(time=5).dan.baseline(
            "enkf-n", members=5, store=folder / "unfinished", progress=False
        )
    with pytest.raises(ValueError, match="is of another run"):
        resumed_training(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
