"""Bars that show how far long work has come and how long the rest takes. The end of interrupted work."""

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
_ON_SCREENS = 0.1  # seconds between two lines of a bar on a screen, as tqdm has them
_KEPT = 256  # largest number of measurements of the progress
_LONG = 60.0  # a first part that takes longer than these seconds counts for the speed


class RecentRate:
    """Recent speed of some work, in parts a second: over the last half of the time, without the first part.

    The first part includes compilation and reading, and says nothing about the other parts. It counts only if it is the
    only part so far, and takes more than a minute.

    Attributes
    ----------
    value : float
        Parts a second; 0 if the speed is not known yet.
    """

    def __init__(self) -> None:
        self._begin: float | None = None
        self._seen: list[tuple[float, float]] = []

    def see(self, seconds: float, done: float) -> None:
        """Note how many parts are done after some seconds. The parts of the first call were done before."""
        if self._begin is None:
            self._begin = done
        if done > (self._seen[-1][1] if self._seen else self._begin):
            self._seen.append((seconds, done))
        if len(self._seen) > _KEPT:
            self._seen = self._seen[:-1:2] + self._seen[-1:]

    @property
    def value(self) -> float:
        """Parts a second; 0 if the speed is not known yet."""
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
        """Values from which a line of the bar is written."""
        values: dict[str, Any] = super().format_dict
        if not self.disable:
            self._recent.see(values["elapsed"], values["n"])
            values["rate"] = self._recent.value
        return values


def bar_of(
    total: float | None,
    what: str,
    *,
    shown: bool,
    items: Iterable[Any] | None = None,
    seconds: float = _ON_SCREENS,
    **options: Any,
) -> Bar:
    """Make a bar. A bar that is written into a file writes a line every half minute.

    Parameters
    ----------
    total : float or None
        Number of parts of the work; None if `items` tell it.
    what : str
        Name of the work, such as "tuning inflation".
    shown : bool
    items : iterable, optional
        Items through which the bar goes.
    seconds : float
        Least seconds between two lines on a screen.
    **options
        Options of tqdm.
    """
    if tqdm is plain_bar and not getattr(sys.stderr, "isatty", bool)():  # no notebook, no terminal
        seconds, options = _IN_FILES, {"maxinterval": _IN_FILES, **options}
    return Bar(items, total=total, **{"desc": what, "disable": not shown, "mininterval": seconds, **options})


class WorkEndedError(RuntimeError):
    """A task in another thread still works for a call that has ended."""


class Work:
    """Long work whose tasks run in threads of this process, or in other processes: its bar, and the end of its tasks.

    dask's threads go on with their tasks after Ctrl-C. Here they end at their next cycle, and no task writes into a
    store after the call has ended.

    Attributes
    ----------
    bar : callable or None
        Function that makes a bar over the parts of the work. It is called when the first part is done.
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
        """Count at least this number of parts as done. Tasks in other processes do not tick."""
        with self._changed:
            bar = self._made()
            if parts > bar.n:
                bar.update(parts - bar.n)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write inside this context. The call does not end before the writing is done.

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
        """Wait for tasks that write, and let no task go on after that."""
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
    """Key by which tasks know a piece of work, in any process."""

    process: tuple[str, int]
    name: str

    @classmethod
    def new(cls) -> WorkKey:
        """A key for work of this process."""
        return cls(_this_process(), uuid4().hex)

    def work(self) -> Work | None:
        """The work; None in another process than the process of the call.

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
    """Identity of this process. Forked processes and processes of other machines have other identities."""
    return _PROCESS, os.getpid()


@contextmanager
def working(key: WorkKey) -> Iterator[Work]:
    """Do long work inside this context. Tasks with this key count their parts, and end with the context."""
    work = _works[key.name] = Work()
    try:
        yield work
    finally:
        del _works[key.name]
        work.end()


def ticking(key: WorkKey | None) -> Callable[[], None] | None:
    """Function that a task calls after each part; None if nothing counts the parts.

    Raises
    ------
    WorkEndedError
        If the call has been left.
    """
    work = None if key is None else key.work()
    return None if work is None else work.tick


@contextmanager
def undisturbed(key: WorkKey | None) -> Iterator[None]:
    """Write for a call. The call does not end before the writing is done, and nothing is written after its end.

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
    """Whether bars are shown in a context, and the work to which its loops belong."""

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
        Key of the work to which loops inside belong. They end with the work.
    """
    token = _scene.set(_Scene(on, key))
    try:
        yield
    finally:
        _scene.reset(token)


def track(items: Iterable[_T], what: str) -> Iterable[_T]:
    """Go through items with a bar. The bar appears after some seconds, if bars are shown.

    Parameters
    ----------
    items : iterable
    what : str
        Name of the work, such as "tuning inflation".

    Returns
    -------
    iterable
        These items.
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
    """A bar for parts that the caller counts. The bar appears after some seconds, if bars are shown."""
    return bar_of(total, what, shown=_scene.get().shown, delay=BAR_DELAY, leave=False)


def counted(bar: Bar) -> Callable[[], None]:
    """Function that a loop calls after each part. It moves the bar, and ends the loop if its work has ended.

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
