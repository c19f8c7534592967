"""The figures of docs/methods.md for serial, hybrid and adaptive filters, small."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    module = importlib.import_module("methods_filters")
    monkeypatch.setattr(module, "BURN_IN", 4)
    return module


def test_every_filter_of_the_table_is_a_baseline_with_these_parameters(example):
    from xdan.core.methods import method_by_name

    for title, (method, parameters, candidates) in example.TABLE.items():
        made = method_by_name(method, **parameters, **dict.fromkeys(candidates, "tune"), candidates=candidates or None)
        assert made.to_tune() == [name for name in made.tunable if name in candidates], title
        assert f"{made.members} members" in title


def test_a_figure_keeps_what_it_made(example, tmp_path, monkeypatch, capsys):
    rows = {
        "EAKF": ("eakf", {"members": 6, "radius": 5.0, "inflation": 1.05}, {}),
        "adaptive": ("letkf", {"members": 5, "inflation": "adaptive", "spin_up": 2}, {}),
    }
    monkeypatch.setattr(example, "TABLE", rows)
    options = argparse.Namespace(out=tmp_path, cycles=4, trajectories=2, seed=3)
    example.FIGURES["table"](options)
    first = (tmp_path / "all-sites.md").read_text()
    assert "mean inflation" in first
    capsys.readouterr()
    monkeypatch.setattr(example, "_scored", None)  # a second call scores nothing
    example.FIGURES["table"](options)
    assert (tmp_path / "all-sites.md").read_text() == first
