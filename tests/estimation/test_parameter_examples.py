"""The figures of examples/imperfect_parameters.py, from their options to their pages, at a small size."""

import argparse
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.filterwarnings("ignore:the truth does not follow", "ignore:.*have lost the truth")  # wrong on purpose
@pytest.mark.filterwarnings("ignore:the estimate of .* has not converged")  # one iteration, or two
@pytest.mark.parametrize(
    ("figure", "stores"), [pytest.param("forcing", 8, marks=pytest.mark.slow), ("coefficients", 2)]
)
def test_a_figure_is_printed_drawn_and_kept(figure, stores, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    module = import_module("imperfect_parameters")
    monkeypatch.setattr(module, "TEST_CYCLES", 8)
    monkeypatch.setattr(module, "BURN_IN", 2)
    monkeypatch.setattr(module, "METHODS", {"augmented": {}, "likelihood": {"iterations": 1}, "em": {"iterations": 2}})
    monkeypatch.setattr(module, "STAGES", dict.fromkeys(("first", "second"), (0.1, 1, 4, module.FIRST)))
    monkeypatch.setattr(module, "SITES", 8)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    options = argparse.Namespace(out=tmp_path, cycles=6, trajectories=2, seed=3)
    module.FIGURES[figure](options)
    first = capsys.readouterr().out
    assert "standard error" in first
    assert len(list(tmp_path.glob("*.zarr"))) == stores
    assert (tmp_path / f"{figure}.html").exists()
    monkeypatch.setattr("xdan.estimate_parameters", None)
    monkeypatch.setattr("xdan.estimation.parameters.estimate_parameters", None)  # a second call makes nothing anew
    module.FIGURES[figure](options)
    assert capsys.readouterr().out == first
