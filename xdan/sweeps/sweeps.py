"""Sweeps: a grid of experiments, computed cell by cell on any dask scheduler into a store."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from dask.callbacks import Callback
from dask.delayed import Delayed
from tqdm.auto import tqdm

from ..core.checks import integer, real, shown, switch
from ..core.dynamics import Dynamics
from ..core.observing import Sites
from ..network import Network, open_network
from ..records.blocks import in_block
from ..records.location import StoreLike, check_reachable, check_rewritable, exists, is_local, locate, writing
from ..records.store import DAMAGE, read_arrays, sealed, write_arrays
from ..records.watch import tell
from .cells import Cell, Scheme, Trained
from .plan import Grid, count, labelled, seeds_from

MOST_CELLS = 500  # more are computed with yes=True only
_MOST_ASKED, _MOST_LISTED = 10_000, 1_000_000  # cells of a cube, without yes=True and with it
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_UNREADABLE = (OSError, *DAMAGE)
_KILLED = " Out of memory, most likely: give workers a larger memory_limit, or take a smaller batch= or window="


def sweep(
    dynamics: Dynamics,
    schemes: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    interval: float = 0.05,
    observe: Sites | None = None,
    error_std: float = 1.0,
    cycles: int = 600,
    trajectories: int = 64,
    burn_in: int = 200,
    store: StoreLike | None = None,
    retry: bool = False,
    yes: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Run a grid of twin experiments: every scheme at every combination of parameters, for every seed.

    An experiment trains its network, where it has one, on an endless twin, cycles a test record that no training has
    seen, and scores it. Experiments that share a network train it once.

    Parameters
    ----------
    dynamics : Dynamics
    schemes : mapping of str to mapping
        What is compared. ``{"baseline": "enkf-n", "members": 40}`` is a classical method and its parameters;
        ``{"network": "residual-cnn", "filters": 24, "minutes": 2}`` a network (a name, an architecture, or a trained
        Network) and the parameters of the network and of `train`. ``"trained_on"``, a mapping, trains on other
        parameters of the twin than the test's: ``{"sites": 40}``.
    axes : mapping of str to sequence, or to mapping of label to value
        Parameters and the values that they run through: of the dynamics (`forcing`), of the twin (`interval`,
        `observe`, `error_std`), of networks, of training, of methods. A scheme without such a parameter is the same
        along that axis.
    seeds : int or sequence of int
        How many, from 0 on, or which. A seed keys training and test record.
    interval, observe, error_std
        Of the twin, where no axis says otherwise.
    cycles, trajectories, burn_in : int
        Of the test records.
    store : path or Zarr store, optional
        Every cell is written as it is finished. The same call, or one with more schemes, values or seeds, computes
        what is missing. Without a store the cube is lazy.
    retry : bool
        Try failed cells again.
    yes : bool
        Go on though more than 500 cells are to be computed, or the cube has more than 10,000.
    progress : bool
        Show a progress bar, with a store.

    Returns
    -------
    xarray.Dataset
        Scores with dims (scheme, *axes, seed), in memory where there is a store. A cell that failed is NaN, `failed`
        is 1 there and the attribute `errors` says why (of a lazy cube, a warning as it is computed).

    Raises
    ------
    TypeError, ValueError
        For a parameter that no scheme takes, an axis without values, too many cells, or a wrong argument, before
        anything is computed.
    FileExistsError
        If the store holds another sweep, or something else.
    OSError
        If the disk is full; finished cells are kept, and the same call goes on.
    KeyboardInterrupt
        At Ctrl-C; finished cells and the checkpoint of a training are kept, and the same call goes on.

    Warns
    -----
    XdanWarning
        Where a cell or a network in the store is damaged; it is computed again.
    """
    grid, retry, yes, progress = _grid(
        dynamics,
        schemes,
        axes,
        seeds,
        {"interval": interval, "observe": observe, "error_std": error_std},
        {"cycles": cycles, "trajectories": trajectories, "burn_in": burn_in},
        {"retry": retry, "yes": yes, "progress": progress},
    )
    grid.check()
    if store is not None:
        store = locate(store)
        check_rewritable(store)
    folder = None if store is None else _Folder(store, grid.about())
    cells = list(grid.cells())
    missing = list({cell.key: cell for cell in cells}.values())
    if folder is not None:
        missing = [cell for cell in missing if folder.missing(cell.key, retry)]
    if len(missing) > MOST_CELLS and not yes:
        minutes = sum(float(cell.minutes) for cell in {c.training_key: c for c in missing}.values())
        raise ValueError(
            f"{len(missing)} cells are to be computed, with {minutes / 60:.1f} hours of training one after the other "
            f"(and as long as their steps take, where no minutes= are given): expected at most {MOST_CELLS}; pass "
            "yes=True to go on"
        )
    grid.check_cells(missing)
    tasks = _tasks(missing, folder, grid.trained)
    if folder is None:
        return grid.cube(tasks)
    check_reachable(store)
    try:
        with writing(store):
            folder.begin()
            _compute(tasks, folder, progress)
            folder.finish(grid.cube({cell.key: folder.read(cell.key) for cell in cells}))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno, f"no room left for {store}: finished cells are kept; make room, and the same call goes on"
        ) from error
    cube: xr.Dataset = xr.open_zarr(store, consolidated=False).load()
    return cube  # lazy, it would change its numbers with the next call on the store


def _grid(
    dynamics: Any,
    schemes: Any,
    axes: Any,
    seeds: Any,
    of_twin: Mapping[str, Any],
    sizes: Mapping[str, Any],
    switches: Mapping[str, Any],
) -> tuple[Grid, bool, bool, bool]:
    """Check what a caller gave, count the cells before any of them is listed, and make a grid and switches of it."""
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"dynamics={shown(dynamics)}: expected an xdan Dynamics such as xdan.Lorenz96()")
    retry, yes, progress = (switch(label, value) for label, value in switches.items())
    least = {"cycles": 1, "trajectories": 1, "burn_in": 0}
    test = {label: integer(label, value, least=least[label]) for label, value in sizes.items()}
    world = {label: real(label, of_twin[label], above=0.0) for label in ("interval", "error_std")}
    observe = Sites.all() if of_twin["observe"] is None else of_twin["observe"]
    if not isinstance(observe, Sites):
        raise TypeError(f"observe={shown(observe)}: expected Sites, such as xdan.Sites.all() or xdan.Sites.every(2)")
    for label, value in (("schemes", schemes), ("axes", {} if axes is None else axes)):
        if not isinstance(value, Mapping):
            raise TypeError(f"{label}={shown(value)}: expected a mapping of names")
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"{label} has the names {shown(wrong)}: expected strings")
    if not schemes:
        raise ValueError("no schemes: expected at least one, such as {'EnKF-N': {'baseline': 'enkf-n'}}")
    axes = {} if axes is None else axes
    if isinstance(seeds, (int, np.integer)):
        seeds = range(integer("seeds", seeds, least=1))
    sizes_of_axes = [count(f"axis {name!r}", values) for name, values in axes.items()]
    total = len(schemes) * math.prod(sizes_of_axes) * count("seeds", seeds)
    if total > (most := _MOST_LISTED if yes else _MOST_ASKED):
        raise ValueError(
            f"a cube of {total} cells: expected at most {most}; take fewer schemes, values or seeds"
            + ("" if yes else f", or pass yes=True, with which {_MOST_LISTED} may be")
        )
    grid = Grid(
        {label: Scheme.of(label, given) for label, given in schemes.items()},
        {net.digest: net for given in schemes.values() if isinstance(net := given.get("network"), Network)},
        {name: labelled(name, values) for name, values in axes.items()},
        seeds_from(seeds),
        dynamics,
        {**world, "observe": observe},
        test,
    )
    return grid, retry, yes, progress


class _Folder:
    """A store of cells, networks and, at its root, the cube.

    Parameters
    ----------
    store : path or Zarr store
    about : mapping
        JSON of the sweep.
    """

    def __init__(self, store: StoreLike, about: Mapping[str, Any]) -> None:
        self.store, self.local = store, is_local(store)
        self._torn = False
        there = self._about() if exists(store) else None
        if there is None:
            if exists(store):
                raise FileExistsError(f"{store} exists and holds no sweep: it is left alone; choose another store=")
        else:
            if not self._torn:
                self._compare(there, about)
            about = {**about, "schemes": {**there["schemes"], **about["schemes"]}}
        self.about = about

    def begin(self) -> None:
        """Make the store this sweep's."""
        if self._torn:
            (Path(self.store) / "zarr.json").unlink()
        about: dict[str, Any] = {"xdan_sweep": json.dumps(self.about)}
        group = zarr.open_group(self.store, mode="a", zarr_format=3, attributes=about)
        group.attrs.update(about)  # with the schemes that were added
        for name in ("cells", "networks"):
            try:
                group.require_group(name)
            except _UNREADABLE as error:
                description = Path(self.store) / name / "zarr.json"
                if not self.local or not description.exists():
                    raise
                _tell_damage(f"{name}/zarr.json", error, "is written again")
                description.unlink()
                group.require_group(name)

    def _about(self) -> Any:
        try:
            text = zarr.open_group(self.store, mode="r").attrs.get("xdan_sweep")
            return None if text is None else json.loads(str(text))
        except (FileNotFoundError, zarr.errors.GroupNotFoundError):
            return None
        except _UNREADABLE as error:
            if (
                not self.local
                or not (Path(self.store) / "cells").is_dir()
                or not (Path(self.store) / "networks").is_dir()
            ):
                return None
            # Cells are known by all that they depend on: whatever sweep this was, those of this one are taken up.
            _tell_damage("zarr.json", error, "is written again")
            self._torn = True
            return {"schemes": {}}

    def _compare(self, stored: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Refuse the store of another sweep; schemes that only one of both has do not matter."""
        differs = {
            name: (stored.get(name), about[name])
            for name in about
            if name != "schemes" and stored.get(name) != about[name]
        }
        for label in set(stored["schemes"]) & set(about["schemes"]):
            if stored["schemes"][label] != json.loads(json.dumps(about["schemes"][label])):
                differs[f"scheme {label!r}"] = (stored["schemes"][label], about["schemes"][label])
        if differs:
            listed = "; ".join(f"{name}: {there} there, {here} now" for name, (there, here) in sorted(differs.items()))
            raise FileExistsError(f"{self.store} holds another sweep ({listed}); choose another store=")

    def missing(self, key: str, retry: bool) -> bool:
        """Whether a cell is to be computed; a damaged one is."""
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
        """Keep a cell."""
        write_arrays(self.store, f"cells/{key}", {}, scores)

    def network(self, cell: Cell) -> Network:
        """Open or train the network of a cell."""
        if not self.local:
            return cell.train(None)
        path = Path(self.store) / "networks" / cell.training_key
        network = self._kept(path, cell)
        if network is not None:
            shutil.rmtree(path.with_suffix(".checkpoint"), ignore_errors=True)  # of a call that was killed in between
            return network
        network = self._train(cell, path.with_suffix(".checkpoint"))
        network.to_zarr(path, mode="w")
        shutil.rmtree(path.with_suffix(".checkpoint"), ignore_errors=True)
        return network

    def _kept(self, path: Path, cell: Cell) -> Network | None:
        """Open a cell's network; one that is damaged, or of another training, is removed."""
        try:
            network = open_network(path)
        except FileNotFoundError:
            if not path.exists():
                return None
            reason: str | Exception = "it holds no network"
        except _UNREADABLE as error:
            reason = error
        else:
            if cell.made(network):
                return network
            reason = "it is of another training, or of one that was cut short"
        _tell_damage(f"networks/{path.name}", reason, "is trained again")
        shutil.rmtree(path, ignore_errors=True)
        return None

    def _train(self, cell: Cell, checkpoint: Path) -> Network:
        """Train, from a checkpoint where there is one that is of use."""
        begun = exists(checkpoint)
        try:
            return cell.train(checkpoint)
        except (FileExistsError, ValueError):
            # Of another run, of none, or damaged; any other error comes again.
            if not begun:
                raise
            shutil.rmtree(checkpoint)
            return cell.train(checkpoint)

    def finish(self, cube: xr.Dataset) -> None:
        """Write the cube beside its cells."""
        group = zarr.open_group(self.store, mode="r+")
        if self.local:  # whatever state the arrays of an earlier cube are in
            for leftover in [*Path(self.store).rglob("*.partial"), *(Path(self.store) / "networks").glob(".*.lock")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()  # of calls that were killed
            for path in Path(self.store).iterdir():
                if path.is_dir() and path.name not in ("cells", "networks"):
                    shutil.rmtree(path)
        else:
            for name in [n for n, _ in group.arrays()]:
                del group[name]
        sealed(cube).assign_attrs(xdan_sweep=group.attrs["xdan_sweep"]).to_zarr(
            self.store, mode="a", consolidated=False, zarr_format=3
        )


def _tasks(cells: Sequence[Cell], folder: _Folder | None, trained: Mapping[str, Network]) -> dict[str, Delayed]:
    """Delayed results by key; a training that cells share is one task, and so is a trained network."""
    trained_tasks = {key: dask.delayed(network, traverse=False) for key, network in trained.items()}
    networks: dict[str, Delayed] = {}
    for cell in cells:
        if cell.trains:
            networks[cell.training_key] = _network(cell, folder)
        elif isinstance(cell.scheme.what, Trained):
            networks[cell.training_key] = trained_tasks[cell.scheme.what.digest]
    return {cell.key: _result(cell, folder, networks.get(cell.training_key)) for cell in cells}


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _network(cell: Cell, folder: _Folder | None) -> Network | str:
    """Train a network, or say why not."""
    in_block()
    try:
        return cell.train(None) if folder is None else folder.network(cell)
    except Exception as error:  # whatever it is, the other cells go on
        return _why(error)


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _result(cell: Cell, folder: _Folder | None, network: Network | str | None) -> dict[str, Any]:
    in_block()
    try:
        scores: dict[str, Any] = {"failed": 1.0, "error": network} if isinstance(network, str) else cell.score(network)
    except Exception as error:
        scores = {"failed": 1.0, "error": _why(error)}
    if folder is not None:
        folder.write(cell.key, scores)
    elif "error" in scores:
        tell([f"a cell failed: {scores['error']}"])
    return scores


def _why(error: BaseException) -> str:
    """What to keep of a failure; raised again where the disk is full, which is no fault of the cell's."""
    if _is_full(error):
        raise error
    return f"{type(error).__name__}: {error}"


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _tell_damage(name: str, reason: str | Exception, remedy: str) -> None:
    """Warn of a piece of a store that is damaged."""
    tell([f"{name} in the sweep's store cannot be used ({reason}): it {remedy}"], stacklevel=4)


class _Bar(Callback):  # type: ignore[misc]
    """Progress over some tasks of a local scheduler."""

    def __init__(self, keys: set[Any], bar: Any) -> None:
        super().__init__(posttask=self._seen)
        self.keys, self.bar = keys, bar

    def _seen(self, key: Any, *_: Any) -> None:
        if key in self.keys:
            self.bar.update()


def _compute(tasks: Mapping[str, Delayed], folder: _Folder, progress: bool) -> None:
    """Compute on the scheduler that is active; without any, one cell after another with all cores."""
    wanted = list(tasks.values())
    with tqdm(total=len(wanted), desc="sweep", unit="cell", disable=not progress) as bar:
        client = _client()
        if client is not None:
            from distributed import KilledWorker, as_completed

            futures = dict(zip(client.compute(wanted), tasks, strict=True))
            try:
                for future in as_completed(futures):
                    key = futures.pop(future)  # let go of: kept by a worker that dies, it would be computed again
                    if (error := future.exception()) is not None:
                        hint = _KILLED if isinstance(error, KilledWorker) else ""
                        folder.write(key, {"failed": 1.0, "error": _why(error) + hint})
                    bar.update()
            except BaseException:
                client.cancel(list(futures))
                raise
        elif wanted:
            scheduler = None if dask.config.get("scheduler", None) else "synchronous"
            with _Bar({task.key for task in wanted}, bar):
                dask.compute(*wanted, scheduler=scheduler)


def _client() -> Any:
    """The distributed client that is active, if any."""
    if dask.config.get("scheduler", None) not in (None, "dask.distributed"):
        return None
    try:
        from distributed import get_client

        return get_client()
    except (ImportError, ValueError):
        return None
