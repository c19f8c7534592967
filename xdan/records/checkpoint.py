"""A checkpoint of a training: the last two saves. One of them is always whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr

from ..core.checks import warn
from ..core.formats import FORMATS, read_format
from .location import StoreLike, check_rewritable, exists, is_local, locate, replacing
from .schema import Array, to_json
from .store import DAMAGE, MISSING, read_arrays, write_arrays


class OtherRunError(ValueError):
    """A checkpoint belongs to another run."""


class Checkpoint:
    """Two slots in a store, written in turn. The pointer moves to a slot once this slot is whole.

    The many small arrays of a training are packed, one for each dtype: writing each by itself takes milliseconds.

    Parameters
    ----------
    store : path or Zarr store
    identity : dict
        JSON description of the run. A checkpoint with another description is refused.
    """

    def __init__(self, store: StoreLike, identity: Mapping[str, Any]) -> None:
        self.store = locate(store, "checkpoint")
        check_rewritable(self.store, "checkpoint")
        self.identity = {**identity, "format": FORMATS["checkpoint"]}
        self._slot = 0

    def load(self) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """Arrays and scalars of the last save that is whole, or None if there is none.

        Raises
        ------
        OtherRunError
            If the store holds another run's checkpoint.
        FileExistsError
            If the store holds anything but a checkpoint.
        ValueError
            If both slots are damaged, or a later xdan wrote them.

        Warns
        -----
        XdanWarning
            If the last save is damaged. The save before it is then used.
        """
        if not exists(self.store):
            return None
        try:
            attributes = dict(zarr.open_group(self.store, mode="r").attrs)
        except (*MISSING, *DAMAGE):
            attributes = {}
        if "xdan_checkpoint" not in attributes:
            raise FileExistsError(
                f"{self.store} exists and is no checkpoint; choose another path for checkpoint=, or remove "
                "what is there"
            )
        self._compare(str(attributes["xdan_checkpoint"]))
        if "latest" not in attributes:
            return None
        latest = 1 if attributes["latest"] == 1 else 0
        try:
            self._slot, saved = latest, self._read(latest)
        except (FileNotFoundError, ValueError) as reason:
            try:
                self._slot, saved = 1 - latest, self._read(1 - latest)
            except (FileNotFoundError, ValueError):
                raise ValueError(
                    f"both saves in the checkpoint {self.store} are damaged: {reason}; remove it"
                ) from None
            warn(
                f"the checkpoint's last save is damaged, the save before it is taken: {reason}",
            )
        return saved

    def _compare(self, text: str) -> None:
        """Refuse another run's checkpoint."""
        try:
            identity = json.loads(text)
        except (ValueError, RecursionError):
            identity = None
        if not isinstance(identity, dict):
            raise FileExistsError(f"{self.store} is a damaged checkpoint; remove it, or choose another path")
        read_format("checkpoint", identity.get("format"), f"the checkpoint {self.store}")
        keys = {*identity, *self.identity} - {"format"}
        if differs := sorted(k for k in keys if identity.get(k) != self.identity.get(k)):
            listed = ", ".join(f"{k}: {identity.get(k)!r} there, {self.identity.get(k)!r} now" for k in differs)
            raise OtherRunError(
                f"checkpoint {self.store} is of another run ({listed}); use the same settings, or another path"
            )

    def _read(self, slot: int) -> tuple[dict[str, Array], dict[str, Any]]:
        packed, scalars = read_arrays(self.store, f"slot{slot}")
        if "_names" in scalars:  # format 1: each array by itself
            return {name: packed[name.replace("/", ".")] for name in scalars.pop("_names")}, scalars
        arrays: dict[str, Array] = {}
        for dtype, members in scalars.pop("_packed").items():
            edges = np.cumsum([math.prod(shape) for _, shape in members])[:-1]
            parts = np.split(packed[dtype], edges)
            arrays |= {name: part.reshape(shape) for (name, shape), part in zip(members, parts, strict=True)}
        return arrays, scalars

    def save(self, arrays: Mapping[str, Array], scalars: Mapping[str, Any]) -> None:
        """Write the slot that is not the last, then point to it."""
        slot = 1 - self._slot
        packed, shapes = _pack(arrays)
        attributes: dict[str, Any] = {"xdan_checkpoint": to_json(self.identity)}
        if is_local(self.store) and not exists(self.store):
            with replacing(self.store) as place:  # after a kill every group is still a checkpoint
                zarr.open_group(place, mode="w", zarr_format=3, attributes=attributes)
        root = zarr.open_group(self.store, mode="a", zarr_format=3, attributes=attributes)
        write_arrays(self.store, f"slot{slot}", packed, {**scalars, "_packed": shapes})
        root.attrs["latest"] = slot
        self._slot = slot


def _pack(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, list[tuple[str, tuple[int, ...]]]]]:
    """Pack arrays into one array for each dtype, with the names and shapes of the parts."""
    parts: dict[str, list[tuple[str, Array]]] = {}
    for name, value in arrays.items():
        value = np.asarray(value)
        parts.setdefault(value.dtype.name, []).append((name, value))
    packed = {dtype: np.concatenate([value.ravel() for _, value in some]) for dtype, some in parts.items()}
    return packed, {dtype: [(name, value.shape) for name, value in some] for dtype, some in parts.items()}
