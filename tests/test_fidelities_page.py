"""The figures of docs/fidelities.md at a small size."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth")  # records of 8 cycles
@pytest.mark.parametrize(("figure", "rows"), [("control-variates", 7), ("multi-model", 6)])
def test_figures_run_to_their_pages(figure, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    example = import_module("imperfect_fidelities")
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    for name, value in {"REPETITIONS": 200, "TOGETHER": 100, "BURN_IN": 2, "SITES": 8}.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(example, "CANDIDATES", {kind: [1.0, 1.1] for kind in example.CANDIDATES})
    monkeypatch.setitem(example.WRONG, "multi-model", lambda: example.uniform(7.0, 9.0))
    monkeypatch.setattr("xdan.Lorenz96.spin_up_time", 2.0)
    options = Namespace(out=tmp_path, cycles=6, trajectories=2, seed=3)
    for _ in range(2):  # the second call computes nothing
        example.FIGURES[figure](options)
        monkeypatch.setattr("xdan.assimilation.cycling.run_method", None)
    table = (tmp_path / f"{figure}.md").read_text().strip().splitlines()
    assert len(table) == 2 + 2 + rows
    assert (tmp_path / f"{figure}.html").stat().st_size > 10_000
    assert ("standard errors below" in capsys.readouterr().out) == (figure == "multi-model")
