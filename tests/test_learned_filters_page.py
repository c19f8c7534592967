"""The figures of docs/learned-filters.md at a small size."""

import argparse
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small_validation(monkeypatch):
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 8)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_LANES", 4)


@pytest.mark.filterwarnings("ignore:.* have lost the truth")  # records of 5 cycles
@pytest.mark.parametrize(("figure", "rows"), [("constant-gain", 2), ("inflation", 4), ("localisation", 6)])
def test_figures(figure, rows, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = import_module("methods_learned")
    monkeypatch.setattr(example, "BURN_IN", 2)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    options = argparse.Namespace(minutes=0.0, cycles=3, trajectories=2, seed=1, out=tmp_path)
    kept = example._learned

    def quick(name, experiment, network, stages, options):
        """The networks that are kept are read; others are trained for a step."""
        settings = {**stages[0].settings, "batch": 4, "trajectories": 4, "window": 2}
        return kept(name, experiment, network, [replace(stages[0], steps=1, settings=settings)], options)

    monkeypatch.setattr(example, "_learned", quick)
    monkeypatch.setitem(example.COUNTS, "localisation", (3, 4, 5))
    monkeypatch.setitem(example.TUNED, "localisation", {m: {"radius": 4.0, "inflation": 1.02} for m in (3, 4, 5)})
    example.FIGURES[figure](options)
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == rows + 2
    assert all(float(row.split("|")[2]) < 10 for row in table[2:])
    pages = {"constant-gain": 1, "inflation": 0, "localisation": 1}
    assert len(list(tmp_path.glob("*.html"))) == pages[figure]
