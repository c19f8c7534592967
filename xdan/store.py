"""Zarr stores: templates filled region by region, resumed runs, and groups of named arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from zarr.errors import GroupNotFoundError

from .blocks import Array, Carry, Plan
from .schema import to_json

StoreLike = Any
"""A path, URL or Zarr store."""

_PACKED = 2  # format of checkpoints
_RESUME = "xdan_resume"
STATUS = "xdan_status"


def exists(store: StoreLike) -> bool:
    """Whether anything is stored there."""
    if _local(store):
        path = Path(store)
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    try:
        zarr.open_group(store, mode="r")
    except (FileNotFoundError, GroupNotFoundError):
        return False
    return True


def check_writable(store: StoreLike, mode: str) -> None:
    """Refuse to overwrite, and never overwrite what is no Zarr store.

    Raises
    ------
    ValueError
        For an unknown mode.
    FileExistsError
        If something is there and mode is not "w", or it is a file or a folder of other things.
    """
    if mode not in ("w", "w-"):
        raise ValueError(f"mode={mode!r}: expected 'w-' (new store) or 'w' (overwrite)")
    if not exists(store):
        return
    if mode == "w-":
        raise FileExistsError(f"{store} exists; pass mode='w' to overwrite it, or another path")
    if _local(store) and not any((Path(store) / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise FileExistsError(f"{store} exists and is no Zarr store: it is left alone; choose another path")


def check_apart(ds: xr.Dataset, store: StoreLike, observation: str) -> None:
    """Refuse to write into the store that a Dataset is read from, or into one that holds a record.

    Raises
    ------
    ValueError
        If it is the same folder, or there are observations in it.
    """
    source = ds.encoding.get("source")
    if isinstance(source, str) and _local(source) and _local(store) and Path(source).resolve() == Path(store).resolve():
        raise ValueError(f"store={str(store)!r} is the store that the record is read from; choose another path")
    try:
        found = zarr.open_group(store, mode="r")
    except (FileNotFoundError, NotADirectoryError, GroupNotFoundError):
        return
    if held := [name for name in dict.fromkeys((observation, "observation")) if name in found]:
        raise ValueError(f"store={str(store)!r} holds a record ({held[0]!r}), no run; choose another path")


def _local(store: StoreLike) -> bool:
    return isinstance(store, (str, Path)) and "://" not in str(store)


def check_whole(ds: xr.Dataset, variable: xr.DataArray | None) -> None:
    """Refuse a variable whose local Zarr array lacks chunks: they would read as NaN.

    Meant for a variable that is never all NaN, such as the truth; chunks of nothing but NaN may lawfully be absent.

    Raises
    ------
    ValueError
        If chunks are missing.
    """
    source = ds.encoding.get("source")
    if variable is None or not isinstance(source, str) or "://" in source or not Path(source).is_dir():
        return
    try:
        array = zarr.open_array(source, path=str(variable.name), mode="r")
    except (FileNotFoundError, KeyError, zarr.errors.ContainsGroupError):
        return
    if sorted(array.shape) == sorted(variable.shape) and array.nchunks_initialized < array.nchunks:
        raise ValueError(
            f"{source} was cut short: {variable.name!r} has {array.nchunks_initialized} of {array.nchunks} chunks. "
            "Write it again, or select the part that is whole"
        )


def digest(*values: Any) -> str:
    """Hash JSON values and arrays."""
    h = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            h.update(f"{value.dtype.str}{value.shape}".encode())
            h.update(np.ascontiguousarray(value).tobytes())
        else:
            h.update(to_json(value, sort_keys=True).encode())
    return h.hexdigest()


class Stream:
    """A store that is filled block by block and that a killed run takes up again.

    The template is written first, then whole regions; what is done, and the state to carry on with, lie in a group
    apart that is removed at the end, so that an unbroken run and a resumed one leave the same store.

    Parameters
    ----------
    store : path or Zarr store
    template : xarray.Dataset
        Dask arrays stand for what is to come; the rest is written at once.
    plan : Plan
        Regions, the template's chunks.
    identity : str
        Of the run; another run's store is refused.
    mode : {"w-", "w"}

    Raises
    ------
    FileExistsError
        If the store holds anything but an unfinished run of the same identity, unless mode is "w".
    """

    def __init__(self, store: StoreLike, template: xr.Dataset, plan: Plan, identity: str, mode: str) -> None:
        self.store, self.plan = store, plan
        found, unfinished = self._found() if exists(store) else (None, False)
        if found is None and unfinished:
            mode = "w"  # killed before the first block
        if found != identity or mode == "w":
            if found is not None and mode != "w":
                raise FileExistsError(
                    f"{store} holds an unfinished run of another method, record or setting; pass mode='w' to "
                    "overwrite it, or another path"
                )
            check_writable(store, mode)
            marked = template.assign_attrs({STATUS: "unfinished"})
            marked.to_zarr(store, mode=_new(store), compute=False, consolidated=False, zarr_format=3)
            resume = zarr.open_group(store, mode="r+").create_group(_RESUME)
            resume.create_array("done", shape=(plan.shape[0],), chunks=(1,), dtype="int64", fill_value=0)
            resume.attrs["identity"] = identity

    def _found(self) -> tuple[str | None, bool]:
        """Identity of the run that the store holds, if it can be resumed; whether it says that it is unfinished."""
        try:
            unfinished = zarr.open_group(self.store, mode="r").attrs.get(STATUS) == "unfinished"
        except (FileNotFoundError, NotADirectoryError, GroupNotFoundError):
            return None, False
        try:
            resume = zarr.open_group(self.store, path=_RESUME, mode="r")
            return (str(resume.attrs["identity"]) if "done" in resume else None), unfinished
        except (FileNotFoundError, GroupNotFoundError, KeyError):
            return None, unfinished

    def done(self, i: int) -> int:
        """Blocks of the i-th row of the plan that are written."""
        array = zarr.open_group(self.store, path=_RESUME, mode="r")["done"]
        return int(np.asarray(array[i]))  # type: ignore[index]

    def carry(self, i: int) -> Carry | None:
        """State to carry on with after `done` blocks."""
        t = self.done(i)
        return read_arrays(self.store, f"{_RESUME}/carry/{i}/{t}")[0] if t else None

    def write(self, i: int, t: int, outputs: Mapping[str, Array], carry: Carry) -> None:
        """Write a block and then, only then, mark it as done."""
        group = zarr.open_group(self.store, mode="r+")
        region = (self.plan.rows(i), self.plan.columns(t))
        for name, value in outputs.items():
            group[name][region] = value  # type: ignore[index]
        write_arrays(self.store, f"{_RESUME}/carry/{i}/{t + 1}", carry, {})
        group[f"{_RESUME}/done"][i] = t + 1  # type: ignore[index]
        old = f"{_RESUME}/carry/{i}/{t}"
        if t and old in group:
            del group[old]

    def write_scalars(self, values: Mapping[str, Array]) -> None:
        """Write what does not depend on trajectory and time."""
        group = zarr.open_group(self.store, mode="r+")
        for name, value in values.items():
            group[name][...] = value  # type: ignore[index]

    def finish(self) -> None:
        """Remove the traces of the run and seal the store."""
        if isinstance(self.store, (str, Path)) and Path(self.store).is_dir():
            for leftover in Path(self.store).rglob("*.partial"):
                leftover.unlink()
        group = zarr.open_group(self.store, mode="r+")
        attributes = dict(group.attrs)
        attributes.pop(STATUS, None)
        group.attrs.put(attributes)  # a kill from here on leaves a whole store, and some of what it was resumed from
        del group[_RESUME]


def write_arrays(store: StoreLike, path: str, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Write named arrays, one chunk each, and a JSON description as one group, replacing what is there."""
    attributes = {
        "description": to_json(description),
        "arrays": sorted(arrays),
        "digest": _digest(arrays, description),
    }
    group = zarr.open_group(store, path=path, mode="w" if path else _new(store), zarr_format=3)
    for name, value in arrays.items():
        value = np.asarray(value, order="C")
        array = group.create_array(
            name, shape=value.shape, chunks=tuple(max(1, n) for n in value.shape), dtype=value.dtype
        )
        if value.size:
            array[...] = value
    group.attrs.update(attributes)


def read_arrays(store: StoreLike, path: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `write_arrays` wrote; nothing is unpickled, imported or executed.

    Raises
    ------
    FileNotFoundError
        If there is no such group.
    ValueError
        If it is not of that kind, or was cut short or changed.
    """
    try:
        group = zarr.open_group(store, path=path, mode="r")
    except (FileNotFoundError, GroupNotFoundError):
        raise FileNotFoundError(f"no Zarr group {path!r} in {store}") from None
    names, text = group.attrs.get("arrays"), group.attrs.get("description")
    if not isinstance(names, list) or not isinstance(text, str):
        raise ValueError(f"{store} ({path or 'root'}) is not a group of arrays that xdan wrote, or was cut short")
    missing = [name for name in names if str(name) not in group]
    if missing:
        raise ValueError(f"{store} ({path or 'root'}) was cut short: arrays {missing} are missing")
    arrays = {str(name): np.asarray(group[str(name)][...]) for name in names}  # type: ignore[index]
    description = json.loads(text)
    if _digest(arrays, description) != group.attrs.get("digest"):
        raise ValueError(f"{store} ({path or 'root'}) was cut short or changed: its digest does not match")
    return arrays, description


def _new(store: StoreLike) -> Literal["w", "w-"]:
    """Zarr's mode for a store that may be written to: "w", which empties it, only where there is a Zarr group."""
    return "w" if exists(store) else "w-"


def _digest(arrays: Mapping[str, Array], description: Mapping[str, Any]) -> str:
    return digest(json.loads(to_json(description)), *(part for name in sorted(arrays) for part in (name, arrays[name])))


class OtherRunError(ValueError):
    """A checkpoint is of another run."""


class Checkpoint:
    """Two slots in a store, written in turn; the pointer moves once a slot is whole.

    The many small arrays of a training are packed, one for each dtype: writing each by itself takes milliseconds.

    Parameters
    ----------
    store : path or Zarr store
    identity : dict
        JSON description of the run; a checkpoint of another run is refused.
    """

    def __init__(self, store: StoreLike, identity: Mapping[str, Any]) -> None:
        self.store, self.identity = store, {**identity, "format": _PACKED}
        self._slot = 0

    def load(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """Arrays and scalars of the last save, or None where there is none.

        Raises
        ------
        OtherRunError
            If the store holds another run's checkpoint.
        FileExistsError
            If it holds something else.
        """
        if not exists(self.store):
            return None
        try:
            attributes = dict(zarr.open_group(self.store, mode="r").attrs)
        except (FileNotFoundError, GroupNotFoundError):
            attributes = {}
        if "xdan_checkpoint" not in attributes:
            raise FileExistsError(f"{self.store} exists and is no checkpoint; choose another path for checkpoint=")
        found = json.loads(str(attributes["xdan_checkpoint"]))
        if differs := sorted(k for k in {*found, *self.identity} if found.get(k) != self.identity.get(k)):
            shown = ", ".join(f"{k}: {found.get(k)!r} there, {self.identity.get(k)!r} now" for k in differs)
            raise OtherRunError(
                f"checkpoint {self.store} is of another run ({shown}); use the same settings, or another path"
            )
        if "latest" not in attributes:
            return None
        self._slot = int(str(attributes["latest"]))
        packed, scalars = read_arrays(self.store, f"slot{self._slot}")
        arrays: dict[str, Array] = {}
        for dtype, members in scalars.pop("_packed").items():
            edges = np.cumsum([math.prod(shape) for _, shape in members])[:-1]
            parts = np.split(packed[dtype], edges)
            arrays |= {name: part.reshape(shape) for (name, shape), part in zip(members, parts, strict=True)}
        return arrays, scalars

    def save(self, arrays: Mapping[str, Array], scalars: Mapping[str, Any]) -> None:
        """Write the other slot, then point to it."""
        # Group and attribute in one write: a kill between two would leave a group that is no checkpoint.
        root = zarr.open_group(
            self.store, mode="a", zarr_format=3, attributes={"xdan_checkpoint": to_json(self.identity)}
        )
        slot = 1 - self._slot
        members: dict[str, list[tuple[str, Array]]] = {}
        for name, value in arrays.items():
            value = np.asarray(value)
            members.setdefault(value.dtype.name, []).append((name, value))
        packed = {dtype: np.concatenate([value.ravel() for _, value in found]) for dtype, found in members.items()}
        shapes = {dtype: [(name, value.shape) for name, value in found] for dtype, found in members.items()}
        write_arrays(self.store, f"slot{slot}", packed, {**scalars, "_packed": shapes})
        root.attrs["latest"] = slot
        self._slot = slot
