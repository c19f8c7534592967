"""Forked children: they run actions, some at a time, and tell the answer and the end of each."""

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
_PAUSE = 0.005  # seconds between two checks of the children


@dataclass(frozen=True)
class End:
    """How a child ended.

    Attributes
    ----------
    status : int
        0 if the action returned, 1 if it raised an error, and a negative number if a signal ended the child.
    answer : object
        What the action returned, or None.
    trouble : str
        The traceback of the error that it raised.
    """

    status: int
    answer: Any = None
    trouble: str = ""

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended the child."""
        return self.status == -signal.SIGKILL


class Child:
    """A forked child that runs an action. Its process group holds all processes that it forks.

    Parameters
    ----------
    action : callable
        A function without arguments. Its answer is pickled.
    leader : bool
        Whether the child leads a new process group.
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
        os._exit(1 if told[1] else 0)  # does not run the parent's threads and exit handlers

    @property
    def running(self) -> bool:
        """Whether the child is still running."""
        return self._process.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the child's end; return whether it has ended."""
        self._process.join(seconds)
        return not self.running

    def kill(self) -> None:
        """End the child by SIGKILL; if it leads a group, end all processes of the group."""
        assert self._process.pid is not None
        if self.running:
            (os.killpg if self._leader else os.kill)(self._process.pid, signal.SIGKILL)
        self._process.join()

    def end(self) -> End:
        """Return how the child ended, after its end."""
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
        Seconds after which a child counts as hanging.
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
    """Run actions in children, some at a time; return each action with its end, in the order of the ends.

    A child that takes longer than the limit, in seconds, is killed. The next action is taken when a child can start.
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
