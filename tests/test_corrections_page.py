"""The blocks of docs/corrections.md, each run by itself as a user would."""

import re

import pytest
from page_blocks import blocks_of

import xdan

BLOCKS = [block.code for block in blocks_of("corrections")]


def printed(block, capsys):
    exec(compile(block, "docs/corrections.md", "exec"), {"__name__": "__main__"})
    return [float(number) for number in re.findall(r" ([\d.e-]+)$", capsys.readouterr().out, re.M)]


@pytest.mark.filterwarnings("ignore::xdan.XdanWarning")
@pytest.mark.slow
def test_the_correction_helps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong, corrected = printed(BLOCKS[0], capsys)
    assert corrected < 0.9 * wrong
    assert isinstance(xdan.open_dynamics("better.zarr"), xdan.CorrectedDynamics)


@pytest.mark.filterwarnings("ignore::xdan.XdanWarning")
def test_the_surrogate_serves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    step, rmse = printed(BLOCKS[2], capsys)
    assert step < 0.02
    assert rmse < 0.3
    assert isinstance(xdan.open_dynamics("surrogate.zarr"), xdan.SurrogateDynamics)


@pytest.mark.filterwarnings("ignore::xdan.XdanWarning")
def test_a_network_corrects_the_model_that_it_is_trained_with(capsys):
    (added,) = printed(BLOCKS[1], capsys)
    assert added != 0.0


def test_all_blocks_are_run():
    assert len(BLOCKS) == 3
