"""Buffers that are used again, as small operations spend more time on making them than on filling them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lease(Generic[T]):
    """Hold on to buffers, which go back to their pool when nothing refers to the lease any more."""

    __slots__ = ("_free", "value")

    def __init__(self, value: T, free: list[T]) -> None:
        self.value, self._free = value, free

    def __del__(self) -> None:
        self._free.append(self.value)


class Pool(Generic[T]):
    """Buffers by key, made where none is free; those of the `most` keys that were used last are kept.

    Copies of a pool, pickled ones too, are empty.

    Parameters
    ----------
    most : int
        Keys. A key has as many buffers as were in use at once.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._free: dict[Hashable, list[T]] = {}

    def lease(self, key: Hashable, make: Callable[[], T], *, keep: bool = True) -> Lease[T]:
        """Take buffers that nobody uses, from `make` if there are none.

        With `keep=False` they are made anew and go with the lease. So it is on a GPU: no object of xdan keeps memory of
        one, and torch has what was freed at hand.
        """
        if not keep:
            return Lease(make(), [])
        free = self._free[key] = self._free.pop(key, [])  # the last in the dict is the one that was used last
        for forgotten in list(self._free)[: -self._most]:
            self._free.pop(forgotten, None)  # another thread may have been here
        return Lease(free.pop() if free else make(), free)

    def __reduce__(self) -> tuple[type[Pool[T]], tuple[int]]:
        return Pool, (self._most,)
