"""Buffers that are used again: small operations would spend more time on making buffers than on filling them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lease(Generic[T]):
    """Holds buffers. They go back to their pool when nothing refers to the lease any more."""

    __slots__ = ("_free", "value")

    def __init__(self, value: T, free: list[T]) -> None:
        self.value, self._free = value, free

    def __del__(self) -> None:
        self._free.append(self.value)


class Pool(Generic[T]):
    """Buffers by key. Buffers are made if none is free. Those of the `most` keys that were used last are kept.

    Copies of a pool, also pickled ones, are empty.

    Parameters
    ----------
    most : int
        Largest number of keys. A key has as many buffers as were in use at once.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._free: dict[Hashable, list[T]] = {}

    def lease(self, key: Hashable, make: Callable[[], T], *, keep: bool = True) -> Lease[T]:
        """Take free buffers; `make` makes them if there are none.

        With `keep=False`, buffers are made anew and freed with the lease. This is used on a GPU: no object of xdan
        keeps memory of a GPU, and torch reuses memory that was freed.
        """
        if not keep:
            return Lease(make(), [])
        free = self._free[key] = self._free.pop(key, [])  # the last key in the dict is the one that was used last
        for forgotten in list(self._free)[: -self._most]:
            self._free.pop(forgotten, None)  # another thread may have removed it already
        return Lease(free.pop() if free else make(), free)

    def __reduce__(self) -> tuple[type[Pool[T]], tuple[int]]:
        return Pool, (self._most,)
