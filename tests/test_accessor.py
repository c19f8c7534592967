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
# Functions whose first argument is a record, all of which should be reachable from one.
ON_RECORDS = sorted(
    name
    for name in set(xdan.__all__) - {"__version__"}
    if inspect.isfunction(getattr(xdan, name))
    and next(iter(inspect.signature(getattr(xdan, name)).parameters)) in ("ds", "source")
)


def test_every_function_of_records_has_a_method():
    assert sorted(METHODS) == ON_RECORDS


@pytest.mark.parametrize("name", METHODS)
def test_method_is_the_function(name, twin, monkeypatch):
    home = import_module(f"xdan.{xdan._HOMES[name]}")
    parameters = list(inspect.signature(getattr(DanAccessor, name)).parameters.values())[1:]
    positional = tuple(object() for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    keywords = {"seed": object(), "anything": object()}
    calls, answer = [], object()

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        return answer

    monkeypatch.setattr(home, name, record)
    assert getattr(twin.dan, name)(*positional, **keywords) is answer
    ((first, *rest), passed) = calls[0]
    assert first is twin
    assert tuple(rest) == positional
    assert passed == keywords
    assert len(calls) == 1


@pytest.mark.parametrize("name", METHODS)
def test_docstring_names_the_function(name):
    assert f"`xdan.{name}`" in inspect.getdoc(getattr(DanAccessor, name))


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
