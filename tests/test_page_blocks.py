"""Blocks of pages are read whole, and wrong commands and links of pages are told."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from pathlib import Path

import pytest
from page_blocks import DOCS, blocks_of

ROOT = Path(__file__).parents[1]
PAGE = """# Title

```python
import xdan
number = 1
```

## One

```python
number += 1
raise ValueError(number)
```

<!-- not run: it needs a cluster -->
```python
import os, xdan
```

```bash
python examples/quickstart.py --minuets 1
```
[a](page.md#one) [b](page.md#two) [c](gone.md) [d](https://example.org/gone)
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


@pytest.fixture(scope="module")
def script():
    path = ROOT / "ci" / "docs_blocks.py"
    if not path.exists():
        pytest.skip("the scripts are not beside the tests")
    specification = importlib.util.spec_from_file_location("docs_blocks", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["docs_blocks"] = module
    specification.loader.exec_module(module)
    return module


def test_blocks_of_a_page(page):
    blocks = blocks_of(page)
    assert [(block.line, block.section, block.reason) for block in blocks] == [
        (4, "", ""),
        (11, "One", ""),
        (17, "One", "it needs a cluster"),
    ]
    assert [block.begins for block in blocks] == [True, False, True]
    assert blocks_of(page, section="One") == blocks[1:]
    assert [block.code for block in blocks_of(page, "bash")] == ["python examples/quickstart.py --minuets 1\n"]


def test_a_traceback_shows_the_line_of_the_page(page):
    first, second, _ = blocks_of(page)
    names = first.run({})
    with pytest.raises(ValueError, match="2") as caught:
        second.run(names)
    assert f'"{page}", line 12' in "".join(traceback.format_exception(caught.value))
    assert first.run(names)["number"] == 1  # a new namespace
    assert names["number"] == 2


def test_no_block_of_the_documentation_is_missed():
    for path in (ROOT / "README.md", *DOCS.glob("*.md")):
        assert len(blocks_of(path)) == len(re.findall(r"^ *`{3,} *py", path.read_text(), re.M)), path


def test_few_blocks_are_not_run():
    assert sum(bool(block.reason) for path in DOCS.glob("*.md") for block in blocks_of(path)) <= 3


def test_wrong_commands_and_links_are_told(page, script):
    assert list(script.wrong_commands(page)) == ["examples/quickstart.py has no option --minuets"]
    assert list(script.wrong_links(page)) == [
        "the link page.md#two leads to no heading",
        "the link gone.md leads to no file",
    ]


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python examples/quickstart.py --minutes 0.1", None),
        ("python examples/gone.py", "examples/gone.py is not there"),
        ("python examples/paper.py fig3 figA1", None),
        ("python examples/paper.py figg", "examples/paper.py knows no figg"),
        ("python examples/methods.py ienks --cycles 400", None),
        ("python ci/docs_blocks.py --jobs 2", None),
    ],
)
def test_commands(command, fault, script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Run `{command}`, or:\n\n```bash\n{command}\n```\n")
    assert list(script.wrong_commands(page)) == ([fault] * 2 if fault else [])


def test_commands_and_links_of_the_documentation(script):
    faults = [
        f"{page.name}: {fault}"
        for page in script.pages()
        for check in (script.wrong_commands, script.wrong_links)
        for fault in check(page)
    ]
    assert not faults


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ('xr.open_zarr("l96.zarr")', ["l96.zarr"]),
        ('ds.to_zarr("l96.zarr")\nxr.open_zarr("l96.zarr")', []),
        ('xdan.open_network("net.zarr")\nnet.to_zarr("net.zarr")', ["net.zarr"]),
        ('xdan.sweep(store="intervals.zarr")', []),
    ],
)
def test_stores_that_a_page_needs(code, names, script):
    assert script._lacking(code) == names
