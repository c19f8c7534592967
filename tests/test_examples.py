"""Every example of a system, from its options to its page, at a small size."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--cycles", "3", "--burn-in", "2", "--trajectories", "2", "--archive", "128"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:tuning", "ignore:.* have lost the truth")  # records of 5 cycles
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("kuramoto_sivashinsky", ["--steps", "2"]),
        ("lorenz63", ["--steps", "2"]),
        ("two_scale", ["--minutes", "0"]),
        ("shallow_water", ["--minutes", "0"]),
        ("barotropic_vorticity", ["--minutes", "0"]),
    ],
)
def test_runs_to_its_page(name, training, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, *SMALL, *training, "--out", str(tmp_path / "out")])
    import_module(name).main()
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0].startswith("| method | RMSE")
    errors = [float(row.split("|")[2]) for row in table[2:]]
    assert len(errors) >= 3
    assert max(errors) < 5
    assert next((tmp_path / "out").glob("*.html")).stat().st_size > 10_000
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 150
