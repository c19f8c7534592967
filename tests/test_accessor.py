"""The accessor forwards, and does nothing else."""

import inspect
import re
from importlib import import_module

import pytest
import xarray as xr

import xdan
from xdan.accessor import DanAccessor
from xdan.records.record import RecordWords

METHODS = [name for name in vars(DanAccessor) if not name.startswith("_")]
ACCESSOR = DanAccessor(xr.Dataset())
# Functions whose first argument is a record, all of which should be reachable from one.
ON_RECORDS = sorted(
    name
    for name in set(xdan.__all__) - {"__version__"}
    if inspect.isfunction(getattr(xdan, name))
    and next(iter(inspect.signature(getattr(xdan, name)).parameters), None) in ("ds", "source")
)


def test_every_function_of_records_has_a_method():
    assert sorted(METHODS) == ON_RECORDS


@pytest.mark.parametrize("name", METHODS)
def test_method_is_the_function(name, twin, monkeypatch):
    home = import_module(f"xdan.{xdan._HOMES[name]}")
    calls, answer = [], object()

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        return answer

    monkeypatch.setattr(home, name, record)
    other = object()
    assert getattr(twin.dan, name)(other, seed=other, anything=other) is answer
    assert calls == [((twin, other), {"seed": other, "anything": other})]


@pytest.mark.parametrize("name", METHODS)
def test_help_is_that_of_the_function(name):
    method, function = getattr(ACCESSOR, name), getattr(xdan, name)
    assert inspect.getdoc(method) == inspect.getdoc(function)
    signature = inspect.signature(function)
    first, *others = signature.parameters.values()
    assert first.name in ("ds", "source")
    assert inspect.signature(method) == signature.replace(parameters=others)
    assert inspect.signature(getattr(DanAccessor, name)) == signature  # what a page of the reference shows


@pytest.mark.parametrize("name", METHODS)
def test_docstring_says_every_word_of_a_record(name):
    """By itself, or by the name of the verb that says them."""
    parameters = inspect.signature(getattr(xdan, name)).parameters
    if "words" in parameters or name == "baseline":
        doc = inspect.getdoc(getattr(xdan, name))
        other = re.search(r"\*\*words\n    As for `(\w+)`", doc)
        doc = doc if other is None else inspect.getdoc(getattr(xdan, other[1]))
        assert [word for word in RecordWords.__annotations__ if not re.search(rf"\b{word}\b", doc)] == []


def test_same_run_and_same_score(twin, net, run):
    xr.testing.assert_identical(twin.dan.cycle(net), run)
    xr.testing.assert_identical(twin.dan.score(run), xdan.score(twin, run))
    again = twin.dan.baseline("enkf-n", members=4)
    xr.testing.assert_identical(again, xdan.baseline(twin, "enkf-n", members=4))


def test_accessor_keeps_nothing(twin):
    assert set(vars(twin.dan)) == {"_ds"}
