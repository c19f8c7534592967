"""The figures of docs/forecasts.md at a small size."""

from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::xdan.XdanWarning")  # networks on records of few cycles
def test_figures_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = import_module("methods_forecasts")
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: pages without their pictures
    for name, value in {"BURN_IN": 20, "MEMBERS": 3}.items():
        monkeypatch.setattr(example, name, value)
    for figure, table, rows in (("doubling", "table", 12), ("methods", "members", 18), ("observations", "table", 25)):
        out = tmp_path / figure
        out.mkdir()
        for _ in range(2):  # the second call computes nothing
            example.FIGURES[figure](Namespace(out=out, cycles=20, trajectories=3, seed=3))
        assert len((out / f"{table}.md").read_text().strip().splitlines()) == 2 + rows
