"""The blocks of docs/fidelities.md, each run by itself as a user would."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "fidelities.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"block {number}", "exec"), {"__name__": "__main__"})
    printed = [float(value) for value in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert printed
    assert np.isfinite(printed).all()
