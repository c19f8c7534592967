"""The examples of the papers' figures, from their options to their pages, at a small size."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import xarray as xr

import xdan

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::xdan.XdanWarning")]  # the trainings are short


@pytest.fixture
def imported(monkeypatch):
    """Import an example. Nothing looks for a browser, so that there are pages without pictures."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 10)
    monkeypatch.setattr("shutil.which", lambda name: None)
    return import_module


@pytest.fixture
def small_sweeps(monkeypatch):
    """Sweeps have test records of 2 trajectories and 8 cycles, and trainings of 2 steps."""
    whole = xdan.sweep

    def small(experiment, schemes, axes=None, **settings):
        steps = {"steps": 2, "minutes": None, "epochs": None}
        few = {name: scheme if "baseline" in scheme else {**scheme, **steps} for name, scheme in schemes.items()}
        return whole(experiment, few, axes, **{**settings, "cycles": 8, "burn_in": 4, "trajectories": 2})

    monkeypatch.setattr(xdan, "sweep", small)


@pytest.fixture
def small_figures(imported, monkeypatch):
    """Patterns and nonlinearity have short records."""
    patterns, nonlinearity = imported("patterns"), imported("nonlinearity")
    monkeypatch.setattr(patterns, "TRAJECTORIES", 5)
    for name, value in {"TRAJECTORIES": 2, "CYCLES": 12, "BURN_IN": 6, "EVERY": 3}.items():
        monkeypatch.setattr(nonlinearity, name, value)
    return patterns, nonlinearity


def run(example, monkeypatch, *options):
    """Call an example with options in its command line."""
    monkeypatch.setattr(sys, "argv", [example.__name__, *map(str, options)])
    example.main()


def test_patterns_run_to_their_page(small_figures, tmp_path, monkeypatch):
    patterns, _ = small_figures
    run(patterns, monkeypatch, "--minutes", 0.005, "--states", 20, "--out", tmp_path)
    table, likeness = (tmp_path / "patterns.md").read_text().split("Likeness")
    assert all(f"| {system.title} |" in table for system in patterns.SYSTEMS)
    assert likeness.count("standard errors") == len(patterns.SYSTEMS) - 1
    assert (tmp_path / "patterns.html").stat().st_size > 10_000


def test_nonlinearity_runs_to_its_page(small_figures, tmp_path, monkeypatch):
    _, nonlinearity = small_figures
    run(nonlinearity, monkeypatch, "--minutes", 0.005, "--out", tmp_path)
    networks, leading = (tmp_path / "nonlinearity.md").read_text().split("\n\n")
    assert all(f"| {nonlinearity.title(interval)} |" in networks for interval in nonlinearity.INTERVALS)
    assert len(leading.splitlines()) == 2 + 7
    assert (tmp_path / "nonlinearity.html").stat().st_size > 10_000


def test_sweeps_run_to_their_pages(imported, small_sweeps, tmp_path, monkeypatch, capsys):
    sweeps = imported("sweeps")
    run(sweeps, monkeypatch, "--out", tmp_path)
    printed = capsys.readouterr().out
    for name, (draw, *_) in sweeps.FIGURES.items():
        assert str(draw.__doc__) in printed
        assert (tmp_path / f"{name}.html").stat().st_size > 10_000
        assert not xr.open_zarr(tmp_path / f"{name}.zarr", consolidated=False).failed.any()


def test_the_family_runs_to_its_table(imported, tmp_path, monkeypatch):
    family = imported("family")
    monkeypatch.setattr(family, "BURN_IN", 2)
    monkeypatch.setattr(family, "TRAJECTORIES", 2)
    run(family, monkeypatch, "--scale", 0.0001, "--out", tmp_path)
    rows = (tmp_path / "family.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [row.title for row in family.rows()]
    assert (tmp_path / "family.html").stat().st_size > 10_000


def test_every_figure_of_the_papers_is_drawn(small_figures, small_sweeps, imported, tmp_path, monkeypatch, capsys):
    paper = imported("paper")
    laptop = replace(
        paper.SCALES["laptop"],
        dissected={"minutes": 0.005},
        states=20,
        intervals=(0.05, 0.4, 1.0),
        forcings=(6.0, 8.0),
        windows=(1, 5, 16),
    )
    monkeypatch.setitem(paper.SCALES, "laptop", laptop)
    run(paper, monkeypatch, "all", "--workers", 0, "--out", tmp_path)
    printed = capsys.readouterr().out
    for name in paper.FIGURES:
        assert f"{name} (" in printed
        assert (tmp_path / "laptop" / f"{name}.txt").read_text().strip() in printed
        assert (tmp_path / "laptop" / f"{name}.html").stat().st_size > 10_000
