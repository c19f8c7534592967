"""A store that a run fills block by block. After a kill, the same run goes on from the last whole block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.errors import GroupNotFoundError

from ..core.checks import warn
from ..core.formats import data_format
from .blocks import Carry, Plan
from .location import StoreLike, exists, is_local, replacing
from .schema import Array
from .store import STATUS, check_writable, consolidate, read_arrays, write_arrays, write_labelled

_RESUME = "xdan_resume"


class Stream:
    """A store that is filled block by block.

    The template is written first, then whole regions. Another group counts the blocks that are done, and holds the
    state from which the run goes on. It is removed at the end: an unbroken run and a resumed run leave equal stores.

    A smoothed run goes through the blocks twice, forward and backward. The group then holds the state that each block
    began with, until the backward pass has done this block.

    Parameters
    ----------
    store : path or Zarr store
        The store that `locate` returns. The caller is its only writer.
    template : xarray.Dataset
        The result without its values. Its dask arrays are filled later; all other arrays are written at once.
    plan : Plan
        Regions of the store: the template's chunks.
    identity : str
        Digest of the run. The store of a run with another digest is refused.
    mode : {"w-", "w"}
        "w" overwrites a store. An unfinished run of the same identity goes on in both modes.
    lags : mapping of str to int, optional
        Number of cycles by which values are moved to earlier times, by variable. The last times have no values.
    backward : bool
        Whether a backward pass goes over the blocks, too.

    Warns
    -----
    XdanWarning
        If an earlier version began the run and did not keep all variables. The run goes on without these.

    Raises
    ------
    FileExistsError
        If the store holds anything but an unfinished run of the same identity, unless mode is "w".
    ValueError
        If a later version of xdan began the run, unless mode is "w".
    """

    def __init__(
        self,
        store: StoreLike,
        template: xr.Dataset,
        plan: Plan,
        identity: str,
        mode: str,
        lags: Mapping[str, int] | None = None,
        backward: bool = False,
    ) -> None:
        self.store, self.plan, self.lags, self.backward = store, plan, dict(lags or {}), backward
        self.absent: list[str] = []
        stored_identity, unfinished = self._stored(mode) if exists(store) else (None, False)
        if stored_identity is None and unfinished:
            mode = "w"  # the run was killed before the first block
        if stored_identity != identity:
            if stored_identity is not None and mode != "w":
                raise FileExistsError(
                    f"{store} holds an unfinished run of another method, record or setting; pass mode='w' to "
                    "overwrite it, or another path"
                )
            check_writable(store, mode)
            with replacing(store) as place:
                self._begin(place, template, identity)
        else:
            self._check_held(template)

    def _begin(self, place: StoreLike, template: xr.Dataset, identity: str) -> None:
        """Write the template, and that no block is done."""
        marked = template.assign_attrs({STATUS: "unfinished"})
        empty = "w" if exists(place) else "w-"
        write_labelled(marked, place, mode=empty, compute=False)
        resume = zarr.open_group(place, mode="r+").create_group(_RESUME)
        for name in ("done", "smoothed") if self.backward else ("done",):
            resume.create_array(name, shape=(self.plan.shape[0],), chunks=(1,), dtype="int64", fill_value=0)
        resume.attrs["identity"] = identity

    def _check_held(self, template: xr.Dataset) -> None:
        """Note the variables that an unfinished run of an earlier version lacks."""
        group = zarr.open_group(self.store, mode="r")
        self.absent = sorted(str(name) for name in template.data_vars if str(name) not in group)
        if self.absent:
            warn(
                f"{self.store} is an unfinished run of an earlier version, which kept no {self.absent}: it goes on "
                "without them; pass another path to make a run that holds them",
            )

    def _stored(self, mode: str) -> tuple[str | None, bool]:
        """Identity of the run in the store, None where it cannot be resumed; and whether the store is unfinished."""
        try:
            attributes = zarr.open_group(self.store, mode="r").attrs.asdict()
        except (FileNotFoundError, NotADirectoryError, GroupNotFoundError, ValueError):
            return None, False
        unfinished = attributes.get(STATUS) == "unfinished"
        if unfinished:
            try:
                data_format(attributes, f"the unfinished run in {self.store}")
            except ValueError:
                if mode != "w":
                    raise
                return None, True
        try:
            resume = zarr.open_group(self.store, path=_RESUME, mode="r")
            return (str(resume.attrs["identity"]) if "done" in resume else None), unfinished
        except (FileNotFoundError, GroupNotFoundError, KeyError, ValueError):
            return None, unfinished

    def done(self, i: int) -> int:
        """Number of blocks of the i-th row of the plan that are written."""
        return self._count("done", i)

    def smoothed(self, i: int) -> int:
        """Number of blocks of the i-th row that the backward pass has written; these are the last blocks in time."""
        return self._count("smoothed", i)

    def _count(self, name: str, i: int) -> int:
        array = zarr.open_group(self.store, path=_RESUME, mode="r")[name]
        return int(np.asarray(array[i]))  # type: ignore[index]

    def carry(self, i: int) -> Carry | None:
        """State from which the run goes on after `done` blocks."""
        return self.begun(i, self.done(i))

    def begun(self, i: int, t: int) -> Carry | None:
        """State that the t-th block of the i-th row began with; None at the first time."""
        return read_arrays(self.store, f"{_RESUME}/carry/{i}/{t}")[0] if t else None

    def handed_back(self, i: int) -> Carry | None:
        """State from which the backward pass goes on after `smoothed` blocks."""
        t = self.plan.shape[1] - self.smoothed(i)
        return read_arrays(self.store, f"{_RESUME}/back/{i}/{t}")[0] if t < self.plan.shape[1] else None

    def write(self, i: int, t: int, outputs: Mapping[str, Array], carry: Carry) -> None:
        """Write a block, and mark it as done after that."""
        group = zarr.open_group(self.store, mode="r+")
        for name, value in outputs.items():
            if name in self.absent:
                continue
            array = group[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]
            lag, columns = self.lags.get(name, 0), self.plan.columns(t)
            first, stop = max(0, columns.start - lag), max(0, columns.stop - lag)
            if stop > first:
                array[self.plan.rows(i), first:stop] = value[:, first + lag - columns.start :]
            if lag and t == self.plan.shape[1] - 1:
                array[self.plan.rows(i), stop:] = np.nan
        write_arrays(self.store, f"{_RESUME}/carry/{i}/{t + 1}", carry, {})
        group[f"{_RESUME}/done"][i] = t + 1  # type: ignore[index]
        if not self.backward:
            self._forget(f"carry/{i}/{t}")

    def write_back(self, i: int, t: int, outputs: Mapping[str, Array], carry: Carry) -> None:
        """Write the result of the backward pass for a block, and mark the block as done after that."""
        group = zarr.open_group(self.store, mode="r+")
        for name, value in outputs.items():
            array = group[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]
            array[self.plan.rows(i), self.plan.columns(t)] = value
        write_arrays(self.store, f"{_RESUME}/back/{i}/{t}", carry, {})
        group[f"{_RESUME}/smoothed"][i] = self.plan.shape[1] - t  # type: ignore[index]
        self._forget(f"back/{i}/{t + 1}")
        self._forget(f"carry/{i}/{t}")

    def _forget(self, name: str) -> None:
        """Remove a state that no block needs any more."""
        group = zarr.open_group(self.store, mode="r+")
        if f"{_RESUME}/{name}" in group:
            del group[f"{_RESUME}/{name}"]

    def write_scalars(self, values: Mapping[str, Array]) -> None:
        """Write the variables that do not depend on trajectory and time."""
        group = zarr.open_group(self.store, mode="r+")
        for name, value in values.items():
            group[name].with_config({"write_empty_chunks": True})[...] = value  # type: ignore[union-attr]

    def finish(self, attributes: Mapping[str, Any] | None = None) -> None:
        """Add attributes, remove the group that counts the blocks, and seal the store."""
        if is_local(self.store):
            for leftover in Path(self.store).rglob("*.partial"):
                leftover.unlink()
        group = zarr.open_group(self.store, mode="r+")
        whole = {**dict(group.attrs), **(attributes or {})}
        whole.pop(STATUS, None)
        group.attrs.put(whole)  # after a kill from here on, the store is whole, and some of the other group is left
        del group[_RESUME]
        consolidate(self.store)
