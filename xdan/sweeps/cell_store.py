"""The store of a sweep: its cells and networks, and the cube at its root."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from ..core.formats import FORMAT, FORMATS, LaterFormatError, data_format
from ..network import Network, open_network
from ..records.location import StoreLike, exists, is_local
from ..records.store import DAMAGE, read_arrays, sealed, write_arrays
from ..records.watch import warn_of
from .cells import Cell

# Errors that Zarr, its codecs and JSON raise if bytes are not those that were written.
_UNREADABLE = (OSError, *DAMAGE)


class CellStore:
    """A store of cells and networks, with the cube at its root.

    Parameters
    ----------
    store : path or Zarr store
    description : mapping
        JSON of the sweep.

    Raises
    ------
    FileExistsError
        If the store holds another sweep, or no sweep.

    Warns
    -----
    XdanWarning
        If a piece of the store is damaged.
    """

    def __init__(self, store: StoreLike, description: Mapping[str, Any]) -> None:
        self.store, self.local = store, is_local(store)
        self._torn = False
        stored = self._stored_description() if exists(store) else None
        if stored is None:
            if exists(store):
                raise FileExistsError(f"{store} exists and holds no sweep: it is left alone; choose another store=")
        else:
            if not self._torn:
                self._compare(stored, description)
            description = {**description, "schemes": {**stored["schemes"], **description["schemes"]}}
        self.description = description

    def begin(self) -> None:
        """Make the store the store of this sweep."""
        if self._torn:
            (Path(self.store) / "zarr.json").unlink()
        attributes: dict[str, Any] = {"xdan_sweep": json.dumps(self.description)}
        numbered = {**attributes, FORMAT: FORMATS["data"]}
        group = zarr.open_group(self.store, mode="a", zarr_format=3, attributes=numbered)
        group.attrs.update(attributes)  # with the schemes that were added
        for name in ("cells", "networks"):
            try:
                group.require_group(name)
            except _UNREADABLE as error:
                file = Path(self.store) / name / "zarr.json"
                if not self.local or not file.exists():
                    raise
                _tell_damage(f"{name}/zarr.json", error, "is written again")
                file.unlink()
                group.require_group(name)

    def _stored_description(self) -> Any:
        """JSON of the sweep in the store, or None if the store holds no sweep. Damaged JSON is noted as torn."""
        try:
            attributes = zarr.open_group(self.store, mode="r").attrs.asdict()
            data_format(attributes, f"the sweep in {self.store}")
            text = attributes.get("xdan_sweep")
            return None if text is None else json.loads(str(text))
        except (FileNotFoundError, zarr.errors.GroupNotFoundError):
            return None
        except LaterFormatError:
            raise
        except _UNREADABLE as error:
            if (
                not self.local
                or not (Path(self.store) / "cells").is_dir()
                or not (Path(self.store) / "networks").is_dir()
            ):
                return None
            # The key of a cell covers all that it depends on: cells that this sweep shares with an old one are used.
            _tell_damage("zarr.json", error, "is written again")
            self._torn = True
            return {"schemes": {}}

    def _compare(self, stored: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Refuse the store of another sweep. Schemes that only one of the two has do not matter."""
        differs = {
            name: (stored.get(name), description.get(name))
            for name in description.keys() | stored.keys()
            if name != "schemes" and stored.get(name) != description.get(name)
        }
        for label in set(stored["schemes"]) & set(description["schemes"]):
            if stored["schemes"][label] != json.loads(json.dumps(description["schemes"][label])):
                differs[f"scheme {label!r}"] = (stored["schemes"][label], description["schemes"][label])
        if differs:
            listed = "; ".join(f"{name}: {there} there, {here} now" for name, (there, here) in sorted(differs.items()))
            raise FileExistsError(f"{self.store} holds another sweep ({listed}); choose another store=")

    def missing(self, key: str, retry: bool) -> bool:
        """Whether a cell must be computed: it is missing or damaged."""
        try:
            failed = bool(self.read(key)["failed"])
        except FileNotFoundError:
            return True
        except _UNREADABLE as error:
            _tell_damage(f"cells/{key}", error, "is computed again")
            return True
        return failed and retry

    def read(self, key: str) -> dict[str, Any]:
        """Scores of a cell."""
        return read_arrays(self.store, f"cells/{key}")[1]

    def write(self, key: str, scores: Mapping[str, Any]) -> None:
        """Write the scores of a cell."""
        write_arrays(self.store, f"cells/{key}", {}, scores)

    def network(self, cell: Cell) -> Network:
        """Open or train the network of a cell."""
        if not self.local:
            return cell.train(None)
        path = Path(self.store) / "networks" / cell.training_key
        network = self._kept(path, cell)
        if network is not None:
            shutil.rmtree(path.with_suffix(".checkpoint"), ignore_errors=True)  # from a call that was killed here
            return network
        network = self._train(cell, path.with_suffix(".checkpoint"))
        network.to_zarr(path, mode="w")
        shutil.rmtree(path.with_suffix(".checkpoint"), ignore_errors=True)
        return network

    def _kept(self, path: Path, cell: Cell) -> Network | None:
        """Open a cell's network. A network that is damaged, or of another training, is removed."""
        try:
            network = open_network(path)
        except FileNotFoundError:
            if not path.exists():
                return None
            reason: str | Exception = "it holds no network"
        except LaterFormatError:  # it is whole, and not ours to remove
            raise
        except _UNREADABLE as error:
            reason = error
        else:
            if cell.has_made(network):
                return network
            reason = "it is of another training, or of one that was cut short"
        _tell_damage(f"networks/{path.name}", reason, "is trained again")
        shutil.rmtree(path, ignore_errors=True)
        return None

    def _train(self, cell: Cell, checkpoint: Path) -> Network:
        """Train the network, from a checkpoint if there is a usable one."""
        begun = exists(checkpoint)
        try:
            return cell.train(checkpoint)
        except LaterFormatError:
            raise
        except (FileExistsError, ValueError):
            # The checkpoint belongs to another run or none, or is damaged. Any other error comes again below.
            if not begun:
                raise
            shutil.rmtree(checkpoint)
            return cell.train(checkpoint)

    def finish(self, cube: xr.Dataset) -> None:
        """Write the cube beside its cells."""
        group = zarr.open_group(self.store, mode="r+")
        if self.local:  # the arrays of an earlier cube may be damaged
            for leftover in [*Path(self.store).rglob("*.partial"), *(Path(self.store) / "networks").glob(".*.lock")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()  # from calls that were killed
            for path in Path(self.store).iterdir():
                if path.is_dir() and path.name not in ("cells", "networks"):
                    shutil.rmtree(path)
        else:
            for name in [n for n, _ in group.arrays()]:
                del group[name]
        sealed(cube).assign_attrs(xdan_sweep=group.attrs["xdan_sweep"]).to_zarr(
            self.store, mode="a", consolidated=False, zarr_format=3
        )


def _tell_damage(name: str, reason: str | Exception, remedy: str) -> None:
    """Warn of a piece of a store that is damaged."""
    warn_of([f"{name} in the sweep's store cannot be used ({reason}): it {remedy}"])
