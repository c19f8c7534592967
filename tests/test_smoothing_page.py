"""The figures of docs/smoothing.md at a small size."""

import re
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.filterwarnings("ignore:.* have lost the truth")  # records of 9 cycles
@pytest.mark.parametrize(
    ("figure", "rows"),
    [
        ("inflation", 4),
        pytest.param("closed-form", 10, marks=pytest.mark.slow),
        pytest.param("ienks", 2, marks=pytest.mark.slow),
        pytest.param("enks", 9, marks=pytest.mark.slow),
    ],
)
def test_figures_run_to_their_tables(figure, rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    example = import_module("methods_smoothers")
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    small = {"BURN_IN": 4, "END": 2, "LAGS": (1, 2), "LAG": 2, "WINDOWS": (1, 2), "MEMBERS": (10, 20)}
    for name, value in small.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr("xdan.Lorenz96.spin_up_time", 2.0)
    out = tmp_path / figure
    out.mkdir()
    options = Namespace(out=out, cycles=8, trajectories=2, seed=3)
    example.FIGURES[figure](options)
    table = (out / "table.md").read_text().strip().splitlines()
    assert len(table) == 2 + 2 + rows
    errors = np.array([float(re.split(r" *\| *", row)[2]) for row in table[4:]])
    assert np.isfinite(errors).all()
    if figure == "closed-form":
        assert errors[0] < 1e-10
