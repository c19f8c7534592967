"""The blocks of docs/progress.md, each run by itself as a user would."""

import logging
import re
from pathlib import Path

import pytest

from xdan.core import log

PAGE = (Path(__file__).parents[1] / "docs" / "progress.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M)
SEEN = ["", r"^   20 .* s  loss .*  RMSE \d", r"^\d\.\d+$", "Surrogate"]  # what each prints


@pytest.mark.slow  # ci/docs_blocks.py runs them, too
@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:tuning inflation")
def test_a_block_runs(number, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="xdan"):
        exec(compile(BLOCKS[number], f"block {number}", "exec"), {"__name__": "__main__"})
    assert re.search(SEEN[number], capsys.readouterr().out, re.M)
    if not number:
        told = {record.name for record in caplog.records}
        assert told == {"xdan.training", "xdan.tuning"}


def test_the_page_names_the_loggers():
    for logger in (log.TRAINING, log.TUNING, log.RUNS):
        assert f"`{logger.name}`" in PAGE
    assert [type(one) for one in logging.getLogger("xdan").handlers] == [logging.NullHandler]
