"""The files of docs/extending.md, written as a user would, and imported by another program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from page_blocks import blocks_of

FILES = {re.match(r"# (\w+\.py)\n", block.code)[1]: block.code for block in blocks_of("extending")}
SITES, SMOOTHINGS = 12, (1, 2, 3, 4)

PROGRAM = """
import numpy as np, torch, xarray as xr, xdan
from lorenz2005 import Lorenz2005
from huber import Huber
from long_waves import LONG_WAVES
from nudging import Nudging
from mobius import AllenCahn, MobiusRing
import two_layers

answers = {}
x = 2.0 + 3.0 * torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
answers["x"] = x
for smoothing in (1, 2, 3, 4):
    answers[f"tendency {smoothing}"] = Lorenz2005(12, 8.0, smoothing).tendency(x)
answers["lorenz96"] = xdan.Lorenz96(12, 8.0).advance(x, 3)
answers["lorenz2005"] = Lorenz2005(12, 8.0, 1).advance(x, 3)
model, h, v = Lorenz2005(12, 8.0, 2), 1e-6, torch.ones_like(x) / (1 + x**2)
answers["along"] = model.advance_along(x, v[:, None], 2)[1][:, 0]
answers["along differences"] = (model.advance(x + h * v, 2) - model.advance(x - h * v, 2)) / (2 * h)

front, ring = AllenCahn(12, wind=0.4, diffusion=0.7), MobiusRing(12)
answers["front tendency"], answers["ring padded"] = front.tendency(x), ring.pad(x, [3])
answers["ring distances"] = ring.distances(ring.positions())
fronts = xdan.twin(AllenCahn(12), interval=0.5, cycles=3, trajectories=5, dtype="float64", seed=0)
fronts.to_zarr("fronts.zarr", consolidated=False)
fronts = xr.open_zarr("fronts.zarr", consolidated=False)
answers["fronts"] = fronts.truth.values
fronts.dan.baseline("letkf", members=4).analysis.values

ds = xdan.twin(model, interval=0.1, cycles=40, trajectories=4, observe=xdan.Sites.every(2), seed=0, dtype="float64")
ds.to_zarr("twin.zarr", consolidated=False)
ds = xr.open_zarr("twin.zarr", consolidated=False)
run = ds.dan.baseline("nudging", share=0.3)
for name, values in ("truth", ds.truth), ("y", ds.observation), ("forecast", run.forecast), ("analysis", run.analysis):
    answers[name] = values.values
answers["by object"] = ds.dan.cycle(Nudging(0.3)).analysis.values
scores = ds.dan.score(run, dim=[], also=[LONG_WAVES])
answers["long waves"] = scores.long_waves.values

ring = xdan.twin(xdan.Lorenz96(sites=12), cycles=48, trajectories=8, seed=0).compute()
answers["tuned"] = ring.dan.baseline("nudging")["tuned_share"].values
net = ring.dan.train(network="two-layers", window=3, batch=4, steps=80, validate_every=20, progress=False)
answers["validation"] = net.history.validation_rmse.values
net.to_zarr("net.zarr")
again = xdan.open_network("net.zarr")
answers["digests"] = np.array([net.digest, again.digest])
answers["cycled"], answers["cycled before"] = (ring.dan.cycle(one).analysis.values for one in (again, net))
covariance = ring.astype("float64", keep_attrs=True).dan.gain(again, kind="covariance", every=40)
states = torch.from_numpy(ring.truth.values[:, ::40]).double().flatten(0, 1)
module, h, columns = net.module(torch.float64), 1e-5, []
for site in range(12):
    zeta = torch.zeros_like(states)
    zeta[:, site] = h
    columns.append((module(states, zeta)[0] - module(states, -zeta)[0]).detach() / (2 * h))
answers["covariance"] = covariance.values.reshape(-1, 12, 12)
answers["covariance differences"] = torch.stack(columns, -1)

class Rollout:  # what an objective reads of one
    analysis, truth = x[None].clone().requires_grad_(), staticmethod(lambda: torch.zeros(1, 5, 12).double())

losses = Huber(2.5).loss(Rollout)
losses.sum().backward()
answers["huber"], answers["huber gradient"] = losses.detach(), Rollout.analysis.grad
training = {"window": 2, "batch": 4, "steps": 20, "validate_every": 10, "progress": False}
small = xdan.ResidualCNN(filters=3, blocks=1)
trained = [ring.dan.train(small, objective=one, **training) for one in ("huber", Huber(), Huber(0.1))]
answers["objectives"] = np.array([str(net.description["training"]["objective"]) for net in trained])
answers["huber digests"] = np.array([net.digest for net in trained])
np.savez("answers.npz", **answers)
"""

LATER = """
import xarray as xr, xdan
ds = xr.open_zarr("twin.zarr", consolidated=False)
for call in (lambda: ds.dan.baseline("3d-var"), lambda: xdan.open_network("net.zarr")):
    try:
        call()
    except ValueError as refused:
        print(refused)
import lorenz2005, two_layers
print(ds.dan.baseline("climatology").sizes["x"], end=" ")
print(xdan.open_network("net.zarr").digest)
"""


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a new process; what it prints, if nothing warns."""
    answer = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert not answer.returncode, answer.stderr
    assert "XdanWarning" not in answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page."""
    place = tmp_path_factory.mktemp("user")
    for name, body in FILES.items():
        (place / name).write_text(body)
    return place


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, np.ndarray]:
    """What a program that imports the files has computed."""
    (folder / "program.py").write_text(PROGRAM)
    python(folder, "program.py")
    with np.load(folder / "answers.npz") as arrays:
        return dict(arrays)


def test_the_page_shows_these_files():
    files = [
        "lorenz2005.py",
        "seasonal96.py",
        "mobius.py",
        "two_layers.py",
        "plane_network.py",
        "nudging.py",
        "huber.py",
        "long_waves.py",
    ]
    assert list(FILES) == files


def written_tendency(x: np.ndarray, forcing: float, k: int) -> np.ndarray:
    """Lorenz's model II as the double sum over i and j that defines it."""
    half = k // 2
    weight = {j: 0.5 if k % 2 == 0 and abs(j) == half else 1.0 for j in range(-half, half + 1)}
    n = x.shape[-1]
    answer = forcing - x
    for i, wi in weight.items():
        for j, wj in weight.items():
            for site in range(n):
                products = x[:, (site - k + j - i) % n] * x[:, (site + k + j) % n]
                products = products - x[:, (site - 2 * k - i) % n] * x[:, (site - k - j) % n]
                answer[:, site] += wi * wj * products / k**2
    return answer


@pytest.mark.slow
@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_the_model_is_the_published_one(answers):
    for smoothing in SMOOTHINGS:
        expected = written_tendency(answers["x"], 8.0, smoothing)
        np.testing.assert_allclose(answers[f"tendency {smoothing}"], expected, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(answers["lorenz2005"], answers["lorenz96"], rtol=1e-11)  # without smoothing
    np.testing.assert_allclose(answers["along"], answers["along differences"], rtol=1e-6, atol=1e-7)


@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_the_geometry_has_a_half_twist(answers):
    """In two turns it is a ring of twice the points, whose second half is the first with the other sign."""
    x, n = answers["x"], SITES
    twice = np.concatenate([x, -x], -1)
    behind, ahead = np.roll(twice, 1, -1), np.roll(twice, -1, -1)
    expected = 0.4 * (behind - twice) + 0.7 * (ahead - 2 * twice + behind) + twice - twice**3
    np.testing.assert_allclose(answers["front tendency"], expected[:, :n], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(answers["ring padded"], np.roll(twice, 3, -1)[:, : n + 6])
    apart = answers["ring distances"]
    np.testing.assert_array_equal(apart, [[min(abs(i - j), n - abs(i - j)) for j in range(n)] for i in range(n)])
    signs = np.sign(answers["fronts"])
    turns = (np.concatenate([signs, -signs[..., :1]], -1)[..., 1:] != signs).sum(-1)
    assert (turns % 2 == 1).all()  # an odd number of fronts, on every trajectory at every time


@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_the_method_nudges(answers):
    """Half of the sites are observed; the others keep the forecast."""
    y, forecast, analysis = answers["y"], answers["forecast"], answers["analysis"]
    observed = np.isfinite(y)
    assert observed.mean() == 0.5
    np.testing.assert_allclose(analysis, np.where(observed, 0.7 * forecast + 0.3 * y, forecast), rtol=1e-12)
    np.testing.assert_array_equal(answers["by object"], analysis)
    assert answers["tuned"] in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_the_objective_is_the_huber_loss(answers):
    """Half the square up to delta, and the tangent beyond; the gradient is the error, clipped."""
    x, delta = answers["x"][None], 2.5
    size = np.abs(x)
    assert 0.2 < (size > delta).mean() < 0.8
    expected = np.where(size <= delta, 0.5 * x**2, delta * (size - 0.5 * delta)).mean(-1)
    np.testing.assert_allclose(answers["huber"], expected, rtol=1e-12)
    np.testing.assert_allclose(answers["huber gradient"], np.clip(x, -delta, delta) / SITES, rtol=1e-12)
    named = "{'name': 'huber', 'parameters': {'delta': %s}}"
    assert list(answers["objectives"]) == [named % "1.0", named % "1.0", named % "0.1"]
    by_name, by_object, other = answers["huber digests"]
    assert by_name == by_object != other


@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_the_score_is_of_the_long_waves(answers):
    """Projected on cosines and sines one by one, with the norms of a root mean square."""
    error, angle = answers["analysis"] - answers["truth"], 2 * np.pi * np.arange(SITES) / SITES
    square = error.mean(-1) ** 2
    for wavenumber in (1, 2, 3):
        for wave in (np.cos(wavenumber * angle), np.sin(wavenumber * angle)):
            square += 0.5 * (2 * (error * wave).mean(-1)) ** 2
    np.testing.assert_allclose(answers["long waves"], np.sqrt(square), rtol=1e-10)


@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_the_network_learns_opens_and_is_differentiated(answers):
    assert answers["validation"].min() < 0.95 * answers["validation"][0]
    assert len(set(answers["digests"])) == 1
    np.testing.assert_array_equal(answers["cycled"], answers["cycled before"])
    assert np.abs(answers["covariance"]).max() > 0.01
    np.testing.assert_allclose(answers["covariance"], answers["covariance differences"], rtol=1e-5, atol=1e-7)


@pytest.mark.slow  # ci/docs_blocks.py runs the files
def test_stores_open_once_their_modules_are_imported(folder, answers):
    (folder / "later.py").write_text(LATER)
    dynamics, network, opened = python(folder, "later.py").strip().split("\n")
    known = [
        "corrected",
        "kuramoto-sivashinsky",
        "lorenz63",
        "lorenz96",
        "sphere-qg",
        "surrogate",
        "two-scale-lorenz96",
    ]
    assert f"dynamics 'lorenz2005' is not registered: expected one of {known}" in dynamics
    assert "or import the module that registers it" in dynamics
    assert "'two-layers'" in network
    assert opened == f"12 {answers['digests'][0]}"
