"""The blocks of docs/parameters.md, each run by itself as a user would."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "parameters.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)


@pytest.mark.filterwarnings("ignore:the truth does not follow")  # the forcing is wrong on purpose
@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_a_block_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/parameters.md", "exec"), {"__name__": "__main__"})
    printed = [float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert printed
    assert np.isfinite(printed).all()
