"""The folder that keeps the passes of a learned correction, and the call that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..assimilation.schemes import scheme_of
from ..core.checks import shown
from ..core.methods import Method
from ..network import Network
from ..records.location import StoreLike, is_local, locate, replacing, writing
from ..records.observing import identity
from ..records.record import LabelledRecord
from ..records.schema import TIME, TRAJECTORY
from ..records.store import digest, read_description, write_arrays
from ..records.values import LEADING_CYCLES, LEADING_TRAJECTORIES
from .increments import Increments

_CALL = "call.zarr"
_VARY = ("when", "xdan")  # entries of an origin that do not change the numbers


def folder_of(store: StoreLike) -> Path:
    """The folder that keeps the runs and models of all passes.

    Raises
    ------
    ValueError
        If the store is no local path.
    FileExistsError
        If the path is a file.
    """
    place = locate(store)
    if not is_local(place):
        raise ValueError(f"store={shown(store)}: expected the path of a folder, which keeps a run of each pass")
    folder = Path(place)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: expected a folder, or a path where there is none yet")
    return folder


def identity_of(labelled: LabelledRecord, increments: Increments, method: Network | Method | None) -> dict[str, str]:
    """Digests of the record's experiment, the first pass and the method of further passes; some data are computed.

    R, H and a step of the model belong to the experiment, as do intervals and labels of trajectories.
    """
    setup = labelled.setup
    experiment = [setup.steps, setup.trajectory, str(setup.dtype), *identity(setup.observing, setup.dynamics)]
    leading = {TRAJECTORY: slice(0, LEADING_TRAJECTORIES), TIME: slice(0, LEADING_CYCLES)}
    states = (increments.forecast, increments.analysis)
    digests = {
        "experiment": digest(*experiment),
        "first pass": digest(*(np.asarray(one.isel(leading).values) for one in states)),
    }
    if method is None:
        return digests
    scheme = scheme_of(method)
    made = scheme.method_on(setup.dtype, "cpu")
    return {**digests, "method": digest([made.name, made.config(), made.tune_on], scheme.digest)}


def claim(folder: Path, call: Mapping[str, Any]) -> None:
    """Write into a new folder the call that its passes belong to; in an old folder, compare this call.

    Raises
    ------
    FileExistsError
        If the folder holds passes of another call, or other files with such names. The message says what differs.
    """
    known = {name: digest(value) for name, value in call.items() if name not in _VARY}
    place, remedy = folder / _CALL, "expected a folder of this call; choose another store="
    with writing(place):
        if not place.exists():
            if stray := sorted(path.name for path in folder.glob("*-[0-9]*.zarr")):
                raise FileExistsError(f"{folder} holds {stray[:3]}, and not the call that made them: {remedy}")
            with replacing(place) as new:
                write_arrays(new, "", {}, {"call": known})
            return
        try:
            there = read_description(place, "")[0].get("call")
        except ValueError as reason:
            raise FileExistsError(f"{place} cannot be read ({reason}): {remedy}") from None
    there = there if isinstance(there, Mapping) else {}
    if differing := sorted(name for name in {*known, *there} if known.get(name) != there.get(name)):
        raise FileExistsError(
            f"{folder} holds the passes of another correction, which differs in {differing}: {remedy}"
        )
