"""The blocks of docs/scores.md, each run by itself as a user would."""

import re
from pathlib import Path

import pytest

import xdan

PAGE = (Path(__file__).parents[1] / "docs" / "scores.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"block {number}", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert re.findall(r"\d+\.\d+", printed)
    assert "NaN" not in printed


def test_every_score_is_on_the_page(twin, ensemble, run):
    scored = [xdan.score(twin, ensemble, also=["energy"]), xdan.score(twin, run)]
    tables = [*scored, xdan.reliability(twin, ensemble, threshold=2.0)[["brier_score", "brier_score_fair"]]]
    names = {str(name) for table in tables for name in table.data_vars} - {"diverged"}
    assert not {name for name in names if f"`{name}`" not in PAGE}
