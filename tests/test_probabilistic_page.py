"""The figures of docs/probabilistic.md at a small size."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest

import xdan


@pytest.mark.slow
@pytest.mark.parametrize(("figure", "rows"), [("gaussian", 4), ("objectives", 4), ("calibrated", 6)])
def test_figures_run_to_their_pages(figure, rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    example = import_module("methods_probabilistic")
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    monkeypatch.setattr(example, "BURN_IN", 2)
    monkeypatch.setattr(example, "RECORD", {"cycles": 40, "trajectories": 12, "seed": 5})
    monkeypatch.setattr(example, "network", lambda *_: xdan.open_network("lorenz96-gaussian"))
    monkeypatch.setattr("xdan.Lorenz96.spin_up_time", 2.0)
    options = Namespace(out=tmp_path / figure, cycles=6, trajectories=2, seed=3, minutes=0)
    options.out.mkdir()
    for _ in range(2):  # the second call computes nothing
        example.FIGURES[figure](options)
        monkeypatch.setattr("xdan.assimilation.cycling.run_method", None)
    table = (options.out / "table.md").read_text().strip().splitlines()
    assert len(table) == 2 + 2 + rows
    assert len(list(options.out.glob("*.html"))) == (figure != "calibrated")
