"""Packages that are not installed are named with the extra that brings them."""

import sys

import pytest

from xdan.core.extras import optional


def test_gives_the_module():
    assert optional("json", "files", "records") is sys.modules["json"]


def test_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hvplot", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "hvplot.xarray", raising=False)
    with pytest.raises(ImportError, match=r"pictures need the package 'hvplot'.*pip install 'xdan\[plots\]'"):
        optional("hvplot.xarray", "plots", "pictures")


def test_a_fault_within_a_package_stays_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        optional("broken_package", "plots", "pictures")
