"""Where a store lies. Paths become absolute, one writer works at a time, and a store is replaced as a whole."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import dask
import zarr
from filelock import FileLock, Timeout
from zarr.abc.buffer import Buffer
from zarr.abc.store import Store
from zarr.errors import GroupNotFoundError
from zarr.storage import LocalStore, MemoryStore, StorePath, ZipStore

from ..core.checks import shown

StoreLike = Any
"""A path, URL or Zarr store."""

_NO_STORES = {".nc", ".nc4", ".h5", ".hdf5", ".grib", ".npy", ".npz", ".csv", ".pt", ".pth", ".pkl", ".pickle"}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of renameat2(2)


def locate(store: Any, label: str = "store") -> StoreLike:
    """Give the absolute path of a local store, where `~` is the home directory; other stores stay as they are.

    Workers in other processes have other working directories, and Zarr does not know a home directory.

    Parameters
    ----------
    store : path, URL or Zarr store
    label : str
        The argument's name.

    Raises
    ------
    TypeError
        If `store` is neither a path nor a store.
    ValueError
        If a path is empty, holds a null character or has the ending of another format; or if a dict holds anything
        but Zarr's buffers.
    """
    if isinstance(store, LocalStore) and not store.read_only:
        store = store.root
    if isinstance(store, (str, os.PathLike)):
        text = os.fspath(store)
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError(f"{label}={store!r}: expected a path")
        if text.startswith("file://"):
            text = unquote(urlparse(text).path)
        if "://" in text:
            return text
        path = Path(text).expanduser().absolute()
        if path.suffix.lower() in _NO_STORES and not path.is_dir():
            raise ValueError(
                f"{label}={text!r} is the name of a {path.suffix} file: expected the path of a Zarr store, a folder "
                "such as 'run.zarr'. Results go into NetCDF by ds.to_netcdf(path)"
            )
        return path
    if isinstance(store, MutableMapping):
        if not all(isinstance(key, str) and isinstance(value, Buffer) for key, value in store.items()):
            raise ValueError(f"{label}={shown(store)}: expected a dict of Zarr's buffers, such as an empty one")
        return store
    if not isinstance(store, (Store, StorePath)):
        raise TypeError(f"{label}={shown(store)}: expected a path, a URL or a Zarr store")
    return store


def is_local(store: StoreLike) -> bool:
    """Whether a store is a path on this machine's file systems."""
    return isinstance(store, Path) or (isinstance(store, str) and "://" not in store)


def in_memory(store: StoreLike) -> bool:
    """Whether a store lies in this process's memory, so that other processes would write into copies."""
    inside = store.store if isinstance(store, StorePath) else store
    return isinstance(inside, (MemoryStore, dict)) or str(inside).startswith("memory://")


def exists(store: StoreLike) -> bool:
    """Whether anything is stored there."""
    if is_local(store):
        path = Path(store)
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    try:
        zarr.open_group(store, mode="r")
    except (FileNotFoundError, GroupNotFoundError):
        return False
    return True


def has_root(path: Path) -> bool:
    """Whether a folder has the root of a Zarr store, of any format."""
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))


def check_rewritable(store: StoreLike, label: str = "store") -> None:
    """Refuse a ZIP archive, because nothing in it can be written twice.

    Raises
    ------
    ValueError
    """
    inside = store.store if isinstance(store, StorePath) else store
    if isinstance(inside, ZipStore):
        raise ValueError(
            f"{label}= is a ZipStore, in which nothing can be written twice: expected a folder or another store that "
            "can be filled block by block; make the ZIP file of the finished store"
        )


def check_reachable(store: StoreLike, label: str = "store") -> None:
    """Refuse a store in this process's memory if dask's workers are other processes.

    Raises
    ------
    ValueError
    """
    if in_memory(store) and dask.delayed(os.getpid, pure=False)().compute() != os.getpid():
        raise ValueError(
            f"{label}= lives in the memory of this process, and dask's workers are other processes, which would write "
            "into copies: expected a path, or workers that are threads"
        )


@contextmanager
def writing(store: StoreLike) -> Iterator[None]:
    """Be the only writer of a local store. A lock file beside the store names the writer; it is removed at the end.

    Raises
    ------
    FileExistsError
        If another writer is at work. The message names the writer.
    """
    if not is_local(store):
        yield
        return
    path = Path(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    name.touch()  # the system says so if nothing can be written here
    lock = FileLock(name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        writer = name.read_text() if name.exists() else ""
        raise FileExistsError(
            f"{path} is being written by another call ({writer or 'which has just begun'}): expected one writer; wait "
            "until that call is done, or choose another path"
        ) from None
    try:
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        name.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {began}")
        yield
    finally:
        name.unlink(missing_ok=True)  # while the lock is held: a waiting writer sees that its file is gone
        lock.release()


@contextmanager
def replacing(store: StoreLike) -> Iterator[StoreLike]:
    """Give a folder to write into. It takes the place of a local store once the context ends without an error.

    Until then, and after an error, the old store stays as it is. A store that is no local path is written in place.
    """
    if not is_local(store):
        yield store
        return
    path = Path(store)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        if path.exists():
            _exchange(partial, path)
        else:
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, in one step if the system can."""
    if sys.platform == "linux":
        renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
        names = os.fsencode(new), os.fsencode(old)
        if renameat2 is not None and not renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
            return
    aside = old.with_name(f".{old.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
