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
    """Buffers by key, made where none is free. Copies of a pool, pickled ones too, are empty."""

    def __init__(self) -> None:
        self._free: dict[Hashable, list[T]] = {}

    def lease(self, key: Hashable, make: Callable[[], T]) -> Lease[T]:
        """Take buffers that nobody uses, from `make` if there are none."""
        free = self._free.setdefault(key, [])
        return Lease(free.pop() if free else make(), free)

    def __reduce__(self) -> tuple[type[Pool[T]], tuple[()]]:
        return Pool, ()
