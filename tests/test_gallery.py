"""The gallery's page shows the pictures that are there, and its blocks name what xdan has."""

import importlib.util
import re
from pathlib import Path

import pytest
from page_blocks import blocks_of

import xdan

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ci" / "gallery.py"
PAGE = ROOT / "docs" / "gallery.md"


@pytest.fixture
def gallery():
    if not SCRIPT.exists():
        pytest.skip("the scripts are not beside the tests")
    specification = importlib.util.spec_from_file_location("gallery", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_pictures_and_page_fit_together(gallery):
    assert gallery.wrong(PAGE, most_kib=1500) == []
    assert len(list((PAGE.parent / "gallery").glob("*.png"))) >= 12


def test_blocks_compile_and_name_what_xdan_has():
    for block in blocks_of("gallery"):
        compile(block.code, str(PAGE), "exec")
        for name in re.findall(r"xdan\.(\w+)", block.code):
            assert hasattr(xdan, name), name
