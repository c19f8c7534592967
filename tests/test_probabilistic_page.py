"""The blocks of docs/probabilistic.md, each run by itself as a user would, and its figures at a small size."""

import re
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import xdan

PAGE = (Path(__file__).parents[1] / "docs" / "probabilistic.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"block {number}", "exec"), {"__name__": "__main__"})
    printed = [float(value) for value in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert printed
    assert np.isfinite(printed).all()


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
