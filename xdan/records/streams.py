"""A store that a run fills block by block; after a kill, the same run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.errors import GroupNotFoundError

from .blocks import Carry, Plan
from .location import StoreLike, exists, is_local, replacing
from .schema import Array
from .store import STATUS, check_writable, read_arrays, write_arrays

_RESUME = "xdan_resume"


class Stream:
    """A store that is filled block by block.

    The template is written first, then whole regions. A group apart counts the blocks that are done, and holds the
    state to carry on with. It is removed at the end, so that an unbroken run and a resumed one leave the same store.

    Parameters
    ----------
    store : path or Zarr store
        As `locate` gives it; the caller is its only writer.
    template : xarray.Dataset
        Dask arrays stand for what is to come; the rest is written at once.
    plan : Plan
        Regions, the template's chunks.
    identity : str
        Of the run; another run's store is refused.
    mode : {"w-", "w"}
        An unfinished run of the same identity is taken up whatever the mode.
    lags : mapping of str to int, optional
        Variables whose values belong to an earlier cycle, and how many cycles earlier; the last times have none.

    Raises
    ------
    FileExistsError
        If the store holds anything but an unfinished run of the same identity, unless mode is "w".
    """

    def __init__(
        self,
        store: StoreLike,
        template: xr.Dataset,
        plan: Plan,
        identity: str,
        mode: str,
        lags: Mapping[str, int] | None = None,
    ) -> None:
        self.store, self.plan, self.lags = store, plan, dict(lags or {})
        stored_identity, unfinished = self._stored() if exists(store) else (None, False)
        if stored_identity is None and unfinished:
            mode = "w"  # killed before the first block
        if stored_identity != identity:
            if stored_identity is not None and mode != "w":
                raise FileExistsError(
                    f"{store} holds an unfinished run of another method, record or setting; pass mode='w' to "
                    "overwrite it, or another path"
                )
            check_writable(store, mode)
            with replacing(store) as place:
                self._begin(place, template, identity)

    def _begin(self, place: StoreLike, template: xr.Dataset, identity: str) -> None:
        """Write the template, and that nothing is done."""
        marked = template.assign_attrs({STATUS: "unfinished"})
        empty = "w" if exists(place) else "w-"
        marked.to_zarr(place, mode=empty, compute=False, consolidated=False, zarr_format=3)  # type: ignore[call-overload]
        resume = zarr.open_group(place, mode="r+").create_group(_RESUME)
        resume.create_array("done", shape=(self.plan.shape[0],), chunks=(1,), dtype="int64", fill_value=0)
        resume.attrs["identity"] = identity

    def _stored(self) -> tuple[str | None, bool]:
        """Identity of the run in the store, None where it cannot be resumed; and whether the store is unfinished."""
        try:
            unfinished = zarr.open_group(self.store, mode="r").attrs.get(STATUS) == "unfinished"
        except (FileNotFoundError, NotADirectoryError, GroupNotFoundError, ValueError):
            return None, False
        try:
            resume = zarr.open_group(self.store, path=_RESUME, mode="r")
            return (str(resume.attrs["identity"]) if "done" in resume else None), unfinished
        except (FileNotFoundError, GroupNotFoundError, KeyError, ValueError):
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
        for name, value in outputs.items():
            array = group[name].with_config({"write_empty_chunks": True})  # type: ignore[union-attr]
            lag, columns = self.lags.get(name, 0), self.plan.columns(t)
            first, stop = max(0, columns.start - lag), max(0, columns.stop - lag)
            if stop > first:
                array[self.plan.rows(i), first:stop] = value[:, first + lag - columns.start :]
            if lag and t == self.plan.shape[1] - 1:
                array[self.plan.rows(i), stop:] = np.nan
        write_arrays(self.store, f"{_RESUME}/carry/{i}/{t + 1}", carry, {})
        group[f"{_RESUME}/done"][i] = t + 1  # type: ignore[index]
        old = f"{_RESUME}/carry/{i}/{t}"
        if t and old in group:
            del group[old]

    def write_scalars(self, values: Mapping[str, Array]) -> None:
        """Write what does not depend on trajectory and time."""
        group = zarr.open_group(self.store, mode="r+")
        for name, value in values.items():
            group[name].with_config({"write_empty_chunks": True})[...] = value  # type: ignore[union-attr]

    def finish(self, attributes: Mapping[str, Any] | None = None) -> None:
        """Add attributes, remove the traces of the run and seal the store."""
        if is_local(self.store):
            for leftover in Path(self.store).rglob("*.partial"):
                leftover.unlink()
        group = zarr.open_group(self.store, mode="r+")
        whole = {**dict(group.attrs), **(attributes or {})}
        whole.pop(STATUS, None)
        group.attrs.put(whole)  # a kill from here on leaves a whole store, and some of what it was resumed from
        del group[_RESUME]
