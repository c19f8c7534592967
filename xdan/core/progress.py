"""Bars that show how far long work has come and how long the rest takes, and the end of work that was interrupted."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from tqdm.asyncio import tqdm as plain_bar
from tqdm.auto import tqdm

_T = TypeVar("_T")
BAR_DELAY = 2.0  # seconds of work that need no bar
_IN_FILES = 30.0  # seconds between two lines of a bar that is written into a file
_KEPT = 256  # measurements of how far work has come
_LONG = 60.0  # seconds of a first part beside which its start counts for little


class RecentRate:
    """How much of some work is done in a second lately: over the last half of the time, without the first part.

    The first part pays for compilation and reading, and says nothing of the others. Only where it takes more than a
    minute is it measured too.

    Attributes
    ----------
    value : float
        Parts a second; 0 where it is not known yet.
    """

    def __init__(self) -> None:
        self._begin: float | None = None
        self._seen: list[tuple[float, float]] = []

    def see(self, seconds: float, done: float) -> None:
        """Note how much is done after some seconds; that of the first call was done before."""
        if self._begin is None:
            self._begin = done
        if done > (self._seen[-1][1] if self._seen else self._begin):
            self._seen.append((seconds, done))
        if len(self._seen) > _KEPT:
            self._seen = self._seen[:-1:2] + self._seen[-1:]

    @property
    def value(self) -> float:
        """Parts a second; 0 where it is not known yet."""
        if not self._seen:
            return 0.0
        until, done = self._seen[-1]
        if len(self._seen) == 1:
            assert self._begin is not None
            return (done - self._begin) / until if until > _LONG else 0.0
        since, before = next((one for one in self._seen[:-1] if one[0] >= until / 2), self._seen[-2])
        return (done - before) / (until - since) if until > since else 0.0


class Bar(tqdm):  # type: ignore[misc]
    """A bar of tqdm whose time left follows from the recent rate."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._recent = RecentRate()
        super().__init__(*args, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a line of the bar is written from."""
        told: dict[str, Any] = super().format_dict
        if not self.disable:
            self._recent.see(told["elapsed"], told["n"])
            told["rate"] = self._recent.value
        return told


def bar_of(total: float | None, what: str, *, shown: bool, items: Iterable[Any] | None = None, **options: Any) -> Bar:
    """Make a bar; one that is written into a file gets a line every half minute.

    Parameters
    ----------
    total : float or None
        Parts of the work; None where items say it.
    what : str
        What is done, such as "tuning inflation".
    shown : bool
    items : iterable, optional
        That the bar goes through.
    **options
        Of tqdm.
    """
    if tqdm is plain_bar and not getattr(sys.stderr, "isatty", bool)():  # no notebook, no terminal
        options = {"mininterval": _IN_FILES, "maxinterval": _IN_FILES, **options}
    return Bar(items, total=total, **{"desc": what, "disable": not shown, **options})


class WorkEndedError(RuntimeError):
    """A task in another thread still works for a call that was interrupted."""


class Work:
    """Long work whose tasks run in threads of this process, or in other processes: a bar, and an end for all of them.

    dask's threads go on with their tasks after Ctrl-C. Here they end at their next cycle, and none of them writes into
    a store any more once the call has been left.

    Attributes
    ----------
    bar : callable or None
        Makes a bar over the parts of the work, as soon as one is done.
    """

    def __init__(self) -> None:
        self.bar: Callable[[], Bar] | None = None
        self._bar: Bar | None = None
        self._ended, self._writers = False, 0
        self._changed = threading.Condition()

    def tick(self, parts: float = 1) -> None:
        """Count parts that are done.

        Raises
        ------
        WorkEndedError
            If the call has been left.
        """
        with self._changed:
            self._check()
            self._made().update(parts)

    def reach(self, parts: float) -> None:
        """Count so many parts as done at least: tasks in other processes do not tick."""
        with self._changed:
            bar = self._made()
            if parts > bar.n:
                bar.update(parts - bar.n)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write inside this context: the call is not left before that is done.

        Raises
        ------
        WorkEndedError
            If the call has been left.
        """
        with self._changed:
            self._check()
            self._writers += 1
        try:
            yield
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()

    def end(self) -> None:
        """Let no task go on, once those that write have written."""
        with self._changed:
            self._ended = True
            if self._bar is not None:
                self._bar.close()
            self._changed.wait_for(lambda: not self._writers)

    def _made(self) -> Bar:
        if self._bar is None:
            self._bar = bar_of(None, "", shown=False) if self.bar is None else self.bar()
        return self._bar

    def _check(self) -> None:
        if self._ended:
            raise WorkEndedError("the call that this task works for has been left")


@dataclass(frozen=True)
class WorkKey:
    """What tasks know a piece of work by, in whatever process they run."""

    process: tuple[str, int]
    name: str

    @classmethod
    def new(cls) -> WorkKey:
        """A key for work of this process."""
        return cls(_this_process(), uuid4().hex)

    def work(self) -> Work | None:
        """The work; None in another process than that of the call.

        Raises
        ------
        WorkEndedError
            If the call has been left.
        """
        if self.process != _this_process():
            return None
        try:
            return _works[self.name]
        except KeyError:
            raise WorkEndedError("the call that this task works for has been left") from None


_works: dict[str, Work] = {}
_PROCESS = uuid4().hex


def _this_process() -> tuple[str, int]:
    """What tells this process from others: from those that it starts by a fork, and from those of other machines."""
    return _PROCESS, os.getpid()


@contextmanager
def working(key: WorkKey) -> Iterator[Work]:
    """Do long work inside this context: tasks with this key tick, and end with it."""
    work = _works[key.name] = Work()
    try:
        yield work
    finally:
        del _works[key.name]
        work.end()


def ticking(key: WorkKey | None) -> Callable[[], None] | None:
    """What a task calls after each part; None where nothing counts them.

    Raises
    ------
    WorkEndedError
        If the call has been left.
    """
    work = None if key is None else key.work()
    return None if work is None else work.tick


@contextmanager
def undisturbed(key: WorkKey | None) -> Iterator[None]:
    """Write for a call that is not left before that is done; nothing is written once it has been left.

    Raises
    ------
    WorkEndedError
        If the call has been left.
    """
    work = None if key is None else key.work()
    with nullcontext() if work is None else work.writing():
        yield


@dataclass(frozen=True)
class _Scene:
    """Whether bars are shown in a context, and the work that its loops are a part of."""

    shown: bool = False
    key: WorkKey | None = None


_HIDDEN = _Scene()
_scene: ContextVar[_Scene] = ContextVar("scene", default=_HIDDEN)


@contextmanager
def showing_bars(on: bool, key: WorkKey | None = None) -> Iterator[None]:
    """Show bars inside this context, in this thread, or hide them; they are hidden by default.

    Parameters
    ----------
    on : bool
    key : WorkKey, optional
        Of the work that loops inside are a part of: they end with it.
    """
    token = _scene.set(_Scene(on, key))
    try:
        yield
    finally:
        _scene.reset(token)


def track(items: Iterable[_T], what: str) -> Iterable[_T]:
    """Go through items with a bar, named by what is done; it appears after some seconds, and only where bars are shown.

    Parameters
    ----------
    items : iterable
    what : str
        Such as "tuning inflation".

    Returns
    -------
    iterable
        Of the same items.
    """
    scene = _scene.get()
    if scene.shown:
        items = bar_of(None, what, shown=True, items=items, delay=BAR_DELAY, leave=False)
    return items if scene.key is None else _while_working(items, scene.key)


def _while_working(items: Iterable[_T], key: WorkKey) -> Iterator[_T]:
    for item in items:
        key.work()
        yield item


def part_bar(total: int, what: str) -> Bar:
    """A bar for parts that the caller counts; it appears after some seconds, and only where bars are shown."""
    return bar_of(total, what, shown=_scene.get().shown, delay=BAR_DELAY, leave=False)


def counted(bar: Bar) -> Callable[[], None]:
    """What a loop calls after each part: it moves the bar, and ends with the work that the loop is a part of.

    Raises
    ------
    WorkEndedError
        When it is called, if the call has been left.
    """
    key = _scene.get().key

    def tick() -> None:
        if key is not None:
            key.work()
        bar.update()

    return tick
