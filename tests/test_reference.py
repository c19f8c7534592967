"""The reference lists every public name, and the blocks of the first page for a newcomer run."""

import re

import pytest
from page_blocks import DOCS, blocks_of

import xdan


def test_every_public_name_is_in_the_reference():
    listed = re.findall(r"^   (\w+)$", (DOCS / "reference.md").read_text(), re.M)
    assert sorted(listed) == sorted(set(xdan.__all__) - {"__version__"})
    assert len(set(listed)) == len(listed)


def test_every_page_is_reached_from_the_first():
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    trees = "".join(re.findall(r"```\{toctree\}.*?```", "".join(p.read_text() for p in DOCS.glob("*.md")), re.DOTALL))
    assert pages == set(re.findall(r"^([\w-]+)$", trees, re.M))


@pytest.mark.slow  # ci/docs_blocks.py runs its blocks
def test_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks_of("first-run"):
        names = block.run(names)
    printed = capsys.readouterr().out
    scores = [float(number) for number in re.findall(r"RMSE ([\d.]+) \+-", printed)]
    assert len(scores) == 2
    assert max(scores) < 0.25
    assert (tmp_path / "first-run.html").stat().st_size > 10_000
    assert float(printed.split()[-1]) < 1.0  # a network of forty steps beats the observations
