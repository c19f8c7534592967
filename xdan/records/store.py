"""Zarr stores: groups of named arrays with a digest, and checks for missing chunks."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import GroupNotFoundError, UnstableSpecificationWarning

from ..core.checks import shown, warn
from .location import StoreLike, exists, has_root, is_local
from .schema import WHOLE, Array, to_json

_COMPRESSORS = (ZstdCodec(), Crc32cCodec())
# Errors that Zarr, its codecs and JSON raise if bytes are not those that were written.
DAMAGE = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)
MISSING = (FileNotFoundError, NotADirectoryError, GroupNotFoundError)  # errors that Zarr raises if there is no group
STATUS = "xdan_status"

Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def sealed(data: Labelled) -> Labelled:
    """Ask Zarr to write every chunk of a Dataset or DataArray with a checksum, also chunks with nothing but NaN.

    A reader then sees that a chunk is damaged if the chunk is missing or differs from what was written.
    Only Zarr's format 3 has the checksum. To write format 2, call `drop_encoding()` first.
    """
    sealed_copy: Labelled = data.copy(deep=False)
    arrays = [*sealed_copy.coords.values(), *(sealed_copy.data_vars.values() if isinstance(data, xr.Dataset) else ())]
    for array in arrays:
        array.variable.encoding = _seal()
    if isinstance(sealed_copy, xr.DataArray):
        sealed_copy.encoding = _seal()
        return sealed_copy
    return sealed_copy.assign_attrs({WHOLE: sorted(map(str, data.variables))})


def _seal() -> dict[str, Any]:
    return {"compressors": _COMPRESSORS, "write_empty_chunks": True}


def check_mode(mode: Any) -> None:
    """Refuse a mode of writing other than "w-" and "w".

    Raises
    ------
    ValueError
        For any other mode.
    """
    if not isinstance(mode, str) or mode not in ("w", "w-"):
        raise ValueError(f"mode={shown(mode)}: expected 'w-' (new store) or 'w' (overwrite)")


def check_writable(store: StoreLike, mode: str) -> None:
    """Refuse to overwrite without mode "w"; never overwrite anything but a Zarr store.

    Raises
    ------
    ValueError
        For an unknown mode.
    FileExistsError
        If the store exists and mode is not "w", or the path is a file or a folder without a Zarr store.
    """
    check_mode(mode)
    if not exists(store):
        return
    if mode == "w-":
        raise FileExistsError(f"{store} exists; pass mode='w' to overwrite it, or another path")
    if is_local(store) and not has_root(Path(store)):
        raise FileExistsError(f"{store} exists and is no Zarr store: it is left alone; choose another path")


def check_apart(ds: xr.Dataset, store: StoreLike, observations: Sequence[str]) -> None:
    """Refuse to write into the store that a Dataset is read from, or into a store that holds a record.

    Raises
    ------
    ValueError
        If the two folders are the same, or the store holds observations.
    """
    source = ds.encoding.get("source")
    if isinstance(source, str) and is_local(source) and is_local(store) and Path(source).resolve() == store.resolve():
        raise ValueError(f"store={str(store)!r} is the store that the record is read from; choose another path")
    try:
        group = zarr.open_group(store, mode="r")
    except (*MISSING, *DAMAGE):
        return
    if held := [name for name in dict.fromkeys((*observations, "observation")) if name in group]:
        raise ValueError(f"store={str(store)!r} holds a record ({held[0]!r}), no run; choose another path")


def check_contents(ds: xr.Dataset) -> None:
    """Warn if a local store lacks arrays that the attributes of its Dataset list.

    Warns
    -----
    XdanWarning
    """
    folder, names = _folder(ds), ds.attrs.get(WHOLE)
    if folder is None or not isinstance(names, (list, tuple)) or not (folder / "zarr.json").exists():
        return
    lacking = sorted(str(name) for name in names if not (folder / str(name) / "zarr.json").exists())
    if lacking:
        warn(
            f"{folder} lacks the arrays {lacking}, which its attributes list: it is damaged, or was saved without "
            f"them. Drop the attribute {WHOLE!r} where that was meant",
        )


def check_whole(ds: xr.Dataset, variable: xr.DataArray | None, *, may_be_empty: bool = False) -> None:
    """Refuse a variable if its local Zarr array or its labels lack chunks: these would read as NaN or zero.

    The attributes of a Dataset that xdan made say that every chunk is written, and each array has a checksum. An array
    without these, such as one that a user has masked and saved, may lack chunks with nothing but NaN.

    Parameters
    ----------
    ds : xarray.Dataset
        The Dataset as it was opened.
    variable : xarray.DataArray or None
    may_be_empty : bool
        Whether a chunk may hold nothing but NaN, as chunks of observations may. A warning then replaces the error,
        unless xdan wrote the array.

    Raises
    ------
    ValueError
        If chunks are missing.

    Warns
    -----
    XdanWarning
        If chunks are missing, and a chunk may be empty.
    """
    folder = _folder(ds)
    if variable is None or folder is None:
        return
    sealed_whole = WHOLE in ds.attrs
    labels = [variable[dim] for dim in variable.dims if dim in variable.coords] if sealed_whole else []
    for array in (variable, *labels):
        chunks = _chunks(folder, str(array.name), array.shape)
        if chunks is None or chunks.there == chunks.total:
            continue
        written_whole = sealed_whole and chunks.checksum
        lack = f"{folder}: {array.name!r} has {chunks.there} of {chunks.total} chunks"
        if may_be_empty and not written_whole:
            warn(
                f"{lack}. Where chunks are missing nothing is observed; if the store was cut short, write it again",
            )
            continue
        raise ValueError(
            f"{lack}: it was cut short or damaged. Write it again, or select the part that is whole"
            + (f"; if Zarr left empty chunks out on purpose, drop the attribute {WHOLE!r}" if written_whole else "")
        )


def _folder(ds: xr.Dataset) -> Path | None:
    """The local folder that a Dataset was opened from, if any."""
    source = ds.encoding.get("source")
    return Path(source) if isinstance(source, str) and "://" not in source and Path(source).is_dir() else None


@dataclass(frozen=True)
class _Chunks:
    """Numbers of chunks of an array that exist and that should exist, and whether they have a checksum.

    A shard counts as one chunk.
    """

    there: int
    total: int
    checksum: bool


def _chunks(folder: Path, name: str, shape: tuple[int, ...]) -> _Chunks | None:
    """Count the chunks of an array; None if the array in the folder is not the array that was opened."""
    try:
        array = zarr.open_array(folder, path=name, mode="r")
    except FileNotFoundError:
        # Consolidated metadata may list an array whose folder is gone.
        try:
            array = zarr.open_group(folder, mode="r").get(name)  # type: ignore[assignment]
        except (*MISSING, *DAMAGE):
            return None
    except (zarr.errors.ContainsGroupError, *DAMAGE):
        return None
    # A run of a record without the dim `trajectory` has one trajectory in its store.
    if not isinstance(array, zarr.Array) or _long(array.shape) != _long(shape):
        return None
    try:
        sizes = array.shards or array.chunks
    except NotImplementedError:  # the chunks differ in size
        return None
    grid = [range(-(-length // max(1, step))) for length, step in zip(array.shape, sizes, strict=True)]
    # Zarr counts by listing the folder, minutes for a million chunks. Looking for each file takes seconds.
    files = (f"{folder}/{name}/{array.metadata.encode_chunk_key(place)}" for place in itertools.product(*grid))
    checksum = any(isinstance(codec, Crc32cCodec) for codec in array.compressors)
    return _Chunks(sum(map(os.path.isfile, files)), math.prod(map(len, grid)), checksum)


def _long(shape: Sequence[int]) -> list[int]:
    """The sizes other than 1 in increasing order."""
    return sorted(size for size in shape if size != 1)


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


def write_arrays(store: StoreLike, path: str, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
    """Write named arrays, one chunk each, and a JSON description as one group. An old group is replaced."""
    attributes: dict[str, Any] = {
        "description": to_json(description),
        "arrays": sorted(arrays),
        "digest": _digest(arrays, description),
    }
    mode: Literal["w", "w-"] = "w" if path else _new(store)
    group = zarr.open_group(store, path=path, mode=mode, zarr_format=3, attributes=attributes)
    for name, value in arrays.items():
        value = np.asarray(value, order="C")
        array = group.create_array(
            name,
            shape=value.shape,
            chunks=tuple(max(1, n) for n in value.shape),
            dtype=value.dtype,
            compressors=_COMPRESSORS,
            config={"write_empty_chunks": True},
        )
        if value.size:
            array[...] = value


def write_labelled(data: xr.Dataset, store: StoreLike, **options: Any) -> None:
    """Write a Dataset into a store, in Zarr's format 3 and without consolidated metadata.

    Parameters
    ----------
    data : xarray.Dataset
    store : path or Zarr store
    **options
        Further arguments of `Dataset.to_zarr`.
    """
    with _quiet():
        data.to_zarr(store, consolidated=False, zarr_format=3, **options)


def consolidate(store: StoreLike) -> None:
    """Copy the labels of a store's arrays into its root, so that `xr.open_zarr(store)` reads it without a warning.

    For stores that are finished: what is added later is not seen through the copy.
    """
    if getattr(store, "supports_consolidated_metadata", True):
        with _quiet():
            zarr.consolidate_metadata(store)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide two warnings of Zarr, of the copy of the labels and of labels that are strings.

    Zarr says that other libraries may not know them. Without the copy they read the arrays' own labels. xarray reads
    the strings.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        yield


def read_description(store: StoreLike, path: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Read the description of a group of arrays, and the arrays' shapes, but none of their values.

    Raises
    ------
    FileNotFoundError
        If there is no such group.
    ValueError
        If `write_arrays` did not write the group, or it was cut short or changed.
    """
    place = f"{store} ({path or 'root'})"
    try:
        group = zarr.open_group(store, path=path, mode="r")
    except MISSING:
        inside = f" has no Zarr group {path!r}" if path else ": there is no Zarr store"
        raise FileNotFoundError(f"{store}{inside}") from None
    except DAMAGE as reason:
        raise ValueError(
            f"{place} is no Zarr group, or is damaged: {reason}; expected a store that xdan wrote"
        ) from None
    try:
        names, text = group.attrs.get("arrays"), group.attrs.get("description")
        if not isinstance(names, list) or not isinstance(text, str):
            raise ValueError(
                f"{place} is not a group of arrays that xdan wrote, or was cut short: expected a store of a network or "
                "of a model; records and runs are opened by xarray.open_zarr"
            )
        missing = [name for name in names if not isinstance(group.get(str(name)), zarr.Array)]
        if missing:
            raise ValueError(f"{place} was cut short: arrays {missing} are missing; write it again, or use a copy")
        description = json.loads(text)
        shapes = {str(name): tuple(group[str(name)].shape) for name in names}  # type: ignore[union-attr]
    except DAMAGE as reason:
        raise (reason if str(store) in str(reason) else ValueError(f"{place} is damaged: {reason}")) from None
    if not isinstance(description, dict):
        raise ValueError(f"{place} has a description of {type(description).__name__}: expected a JSON object")
    return description, shapes


def read_arrays(store: StoreLike, path: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read the arrays and the description that `write_arrays` wrote; nothing is unpickled, imported or executed.

    Raises
    ------
    FileNotFoundError
        If there is no such group.
    ValueError
        If `write_arrays` did not write the group, or it was cut short or changed.
    """
    description, shapes = read_description(store, path)
    group = zarr.open_group(store, path=path, mode="r")
    try:
        arrays = {name: np.asarray(group[name][...]) for name in shapes}  # type: ignore[index]
        same = _digest(arrays, description) == group.attrs.get("digest")
    except DAMAGE as reason:
        raise ValueError(
            f"{store} ({path or 'root'}) was cut short or changed: {reason}; write it again, or use a copy"
        ) from None
    if not same:
        raise ValueError(
            f"{store} ({path or 'root'}) was cut short or changed: its digest does not match; write it again, or "
            "use a copy"
        )
    return arrays, description


def _new(store: StoreLike) -> Literal["w", "w-"]:
    """Zarr's mode of writing: "w", which empties the store, only if the store is a Zarr group."""
    return "w" if exists(store) else "w-"


def _digest(arrays: Mapping[str, Array], description: Mapping[str, Any]) -> str:
    return digest(json.loads(to_json(description)), *(part for name in sorted(arrays) for part in (name, arrays[name])))
