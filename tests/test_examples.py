"""Every example of a system, from the command line to its page, at a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--minutes", "0", "--cycles", "3", "--burn-in", "2", "--trajectories", "2"]


@pytest.mark.parametrize(
    "name", ["kuramoto_sivashinsky", "two_scale", "lorenz63", "shallow_water", "barotropic_vorticity"]
)
def test_runs_to_its_page(name, tmp_path):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *SMALL, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0].startswith("| method | RMSE |")
    assert len(table) >= 4
    assert "nan" not in " ".join(row.split("|")[2] for row in table[2:])
    assert list((tmp_path / "out").glob("*.html"))
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 150
