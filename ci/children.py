"""Forked children: what an action answers, how it ends, and a few of them side by side."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Action = TypeVar("Action", bound=Callable[[], Any])

_FORK = multiprocessing.get_context("fork")
_PAUSE = 0.005  # seconds between two looks at the children


@dataclass(frozen=True)
class End:
    """How a child ended.

    Attributes
    ----------
    status : int
        0 where the action returned, 1 where it raised, and a negative number where a signal ended the child.
    answer : object
        What the action returned, or None.
    trouble : str
        The traceback of what it raised.
    """

    status: int
    answer: Any = None
    trouble: str = ""

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


class Child:
    """A forked child, at work on an action; its process group has all that it forks in turn.

    Parameters
    ----------
    action : callable
        Takes nothing; its answer is pickled.
    leader : bool
        Whether the child leads a process group of its own.
    """

    def __init__(self, action: Callable[[], Any], leader: bool = False) -> None:
        number, name = tempfile.mkstemp(prefix="answer-")
        os.close(number)
        self._file, self._leader, self.started = Path(name), leader, time.monotonic()
        self._process = _FORK.Process(target=self._serve, args=(action,))
        self._process.start()

    def _serve(self, action: Callable[[], Any]) -> None:
        if self._leader:
            os.setpgid(0, 0)
        try:
            told = (action(), "")
        except BaseException:
            told = (None, traceback.format_exc())
        self._file.write_bytes(pickle.dumps(told))
        os._exit(1 if told[1] else 0)  # leave the parent's threads and exit handlers alone

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, so long at most; whether it has ended."""
        self._process.join(seconds)
        return not self.running

    def kill(self) -> None:
        """End it by SIGKILL, with all that it forked where it leads a group."""
        assert self._process.pid is not None
        if self.running:
            (os.killpg if self._leader else os.kill)(self._process.pid, signal.SIGKILL)
        self._process.join()

    def end(self) -> End:
        """Tell how it ended, once it has."""
        self._process.join()
        status = self._process.exitcode
        assert status is not None
        answer, trouble = pickle.loads(self._file.read_bytes()) if status in (0, 1) else (None, "")
        self._file.unlink()
        return End(status, answer, trouble)


def in_child(action: Callable[[], Any], limit: float, kill_after: float | None = None) -> End:
    """Run an action in a child.

    Parameters
    ----------
    action : callable
    limit : float
        Seconds; a child that takes longer hangs.
    kill_after : float, optional
        Seconds after which the child is killed.

    Raises
    ------
    TimeoutError
        If the child hangs.
    """
    child = Child(action)
    ended = child.wait(limit if kill_after is None else kill_after)
    if not ended:
        child.kill()
    end = child.end()
    if not ended and kill_after is None:
        raise TimeoutError(f"a child was still at work after {limit:g} s")
    return end


def side_by_side(actions: Iterable[Action], at_once: int, limit: float) -> Iterator[tuple[Action, End]]:
    """Run actions in children, some at once; give each with its end, in the order of their ends.

    A child that takes longer than the limit, in seconds, is killed. Actions are asked for one by one, when there is
    room for another child.
    """
    waiting = iter(actions)
    children: dict[Child, Action] = {}
    try:
        while True:
            while len(children) < at_once and (action := next(waiting, None)) is not None:
                children[Child(action, leader=True)] = action
            if not children:
                return
            time.sleep(_PAUSE)
            for child in list(children):
                if child.running and time.monotonic() - child.started > limit:
                    child.kill()
                if not child.running:
                    yield children.pop(child), child.end()
    finally:
        for child in children:
            child.kill()
