"""The ball on the Lorenz-63 attractor: what its directions are, and the example from its options to its page."""

import argparse
from importlib import import_module
from pathlib import Path

import numpy as np
import panel as pn
import pytest
import torch

import xdan

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module("lorenz63_ball")


@pytest.fixture(scope="module")
def truth():
    ds = xdan.twin(xdan.Lorenz63(), interval=0.25, cycles=150, trajectories=2, seed=1, dtype="float64")
    return ds.compute(scheduler="synchronous")


def test_a_tiny_ball_has_the_covariance_of_states_that_drift(example, truth):
    begin = truth.truth.values[:, 40:42]
    unit = np.sqrt(3) * 1e-5 * np.vstack([np.eye(3), -np.eye(3)])  # of covariance 1e-10 I
    members = torch.from_numpy(begin[:, :, None] + unit)
    anomalies = example.MODEL.advance(members, 2 * example.STEPS) - example.MODEL.advance(
        torch.from_numpy(begin), 2 * example.STEPS
    ).unsqueeze(-2)
    expected = (anomalies.mT @ anomalies / 6).numpy() / 1e-10
    np.testing.assert_allclose(example.tiny_ball(begin, 2), expected, rtol=1e-6, atol=1e-6 * abs(expected).max())


@pytest.mark.slow
def test_an_old_ball_is_drawn_out_along_the_first_vector(example, truth):
    """Whether covariant or backward: the first of both is one."""
    age, kept = 60, slice(80, 100)
    old = example.leading(example.tiny_ball(truth.truth.values[:, kept.start - age : kept.stop - age], age))
    for kind in ("covariant", "backward"):
        vectors = xdan.lyapunov_vectors(truth, kind=kind, spin_up=50).lyapunov_vector
        first = vectors.sel(vector=1, time=truth.time[kept])
        assert example.cosine(old, first.compute(scheduler="synchronous")).min() > 0.999


@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth")  # of few cycles
@pytest.mark.slow
def test_runs_to_its_page(example, tmp_path, monkeypatch):
    monkeypatch.setattr(xdan.Lorenz63, "spin_up_time", 3.0)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 60)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_LANES", 4)
    monkeypatch.setattr(example, "SPIN_UP", 20)
    monkeypatch.setitem(example.METHODS, example.ETKF, ("etkf", {"members": 4, "inflation": 1.05}))
    monkeypatch.setitem(example.METHODS, example.IENKS, ("ienks", {"members": 4, "lag": 1, "inflation": 1.05}))
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    options = argparse.Namespace(out=tmp_path, minutes=0.02, cycles=40, trajectories=2, seed=None)
    example.FIGURES["ball"](options)
    lines = (tmp_path / "table.md").read_text().splitlines()
    table = {row.split("|")[1].strip(): float(row.split("|")[2].split()[0]) for row in lines[4:-2]}
    assert table[example.since(1)] < table[example.since(16)] <= 1
    assert table[example.RANDOM] == pytest.approx(0.5, abs=0.12)
    assert (tmp_path / "ball.html").stat().st_size > 10_000
    results = example.kept(tmp_path / "ball.zarr", lambda: None)
    assert len(set(example.places(results))) == example.PLACES
    view = example.explore(results)
    view.get_root()  # drawn
    assert len(view.select(pn.pane.HoloViews)[0].object) == 2
    assert len((EXAMPLES / "lorenz63_ball.py").read_text().splitlines()) <= 250
