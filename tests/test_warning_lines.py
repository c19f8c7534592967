"""A warning of xdan names the line of the user's file that led to it."""

import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import xdan

ROOT = Path(xdan.__file__).parent


@pytest.fixture(scope="module")
def ds():
    twin = xdan.twin(xdan.Lorenz96(sites=8), cycles=4, trajectories=2, seed=0).compute()
    return twin.assign(observation=twin.observation + 9.0)  # far from the truth


def told(call):
    """Files, categories and lines that warnings name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert caught
    return {(one.filename, one.category) for one in caught}, {one.lineno for one in caught}


METHOD = {"members": 6, "inflation": 1.1}
CALLS = {
    "accessor": lambda ds: ds.dan.baseline("etkf", **METHOD),
    "function": lambda ds: xdan.baseline(ds, "etkf", **METHOD),
    "lazy, in threads": lambda ds: ds.chunk(trajectory=1).dan.baseline("etkf", **METHOD).compute(),
    "lazy, here": lambda ds: ds.chunk(trajectory=1).dan.baseline("etkf", **METHOD).compute(scheduler="synchronous"),
    "a thread of the user": lambda ds: in_thread(lambda: xdan.baseline(ds, "etkf", **METHOD)),
    "below the wall": lambda ds: xdan.CustomDynamics(lambda x: -x, state={"x": 3}, timestep=0.1, spin_up_time=0.05),
}


def in_thread(call):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_names_the_users_file(ds, name):
    seen, lines = told(lambda: CALLS[name](ds))
    assert seen == {(__file__, xdan.XdanWarning)}
    first = inspect.getsourcelines(CALLS[name])[1]
    assert lines == {first}  # of the lambda, not of the helpers


def test_a_thread_whose_main_thread_does_not_wait_keeps_the_callers_line():
    from xdan.core.checks import warn

    code = compile("def f():\n    warn('text')\n", "inside.py", "exec")
    names = {"__name__": "xdan.inside", "warn": warn}
    exec(code, names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=names["f"])  # no line of this file is in its stack
        thread.start()
        thread.join()
    assert [(one.filename, one.lineno) for one in caught] == [("inside.py", 2)]


def test_the_same_warning_of_one_line_is_shown_once_and_of_two_lines_twice():
    from xdan.core.checks import warn

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("text of one line")
        warn("text of one line")
    assert len(caught) == 2


def test_code_without_a_module_is_warned_too(ds):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile("ds.dan.baseline('etkf', members=6, inflation=1.1)", "a block", "exec"), {"ds": ds})
    assert {one.filename for one in caught} == {"a block"}


def test_one_function_warns():
    """Levels of a stack that are counted by hand point into xdan."""
    files = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.py")}
    assert [name for name, text in files.items() if "warnings.warn" in text] == ["core/checks.py"]
    assert [name for name, text in files.items() if "stacklevel" in text] == ["records/watch.py"]  # for clients
