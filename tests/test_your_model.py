"""The blocks of docs/your-model.md, each run by itself as a user would."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "your-model.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.M))
BLOCKS = [
    (f"{title} {number}", block)
    for title, text in SECTIONS.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.M), 1)
]


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_block_runs(name, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), {"__name__": "__main__"})
    printed = [float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert np.isfinite(printed).all()


def test_the_page_names_the_methods_that_work():
    from xdan.core.methods.base import METHODS

    text = SECTIONS["A NumPy model"].split("**What works.**")[1].split("**Training.**")[0]
    works, refused = text.split("scores, gains")
    for name in METHODS:
        if "particle" not in name and name not in ("ienkf-n", "ienks-n"):  # named together with others
            assert f"`{name}`" in (refused if METHODS[name].differentiates_model else works), name
