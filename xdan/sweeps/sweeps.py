"""Sweeps: many twin experiments, computed cell by cell on any dask scheduler into a store."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dask
import xarray as xr
from dask.callbacks import Callback
from dask.delayed import Delayed

from ..core.checks import switch
from ..core.dynamics import Dynamics, GivenClimate
from ..core.log import RUNS
from ..core.progress import bar_of
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.blocks import in_block
from ..records.climatology import with_climatology
from ..records.location import StoreLike, check_reachable, check_rewritable, locate, writing
from ..records.watch import warn_of
from .cell_store import CellStore
from .cells import Cell
from .plan import SweepPlan

MOST_CELLS = 500  # more are computed with yes=True only
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))  # a disk without room
_KILLED = " Out of memory, most likely: give workers a larger memory_limit, or take a smaller batch= or window="


def sweep(
    experiment: TwinExperiment | Dynamics,
    schemes: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    cycles: int = 600,
    trajectories: int = 64,
    burn_in: int = 200,
    climatology: Any = None,
    store: StoreLike | None = None,
    retry: bool = False,
    yes: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Run many twin experiments: every scheme at every combination of parameters, for every seed.

    An experiment trains its network, where it has one, on an endless twin, cycles a test record that no training has
    seen, and scores it. Experiments that share a network train it once.

    Parameters
    ----------
    experiment : TwinExperiment or Dynamics
        What is the same wherever no axis says otherwise; of a dynamics, a `TwinExperiment` with its defaults.
    schemes : mapping of str to mapping
        What is compared. ``{"baseline": "enkf-n", "members": 40}`` is a classical method and its parameters;
        ``{"network": "residual-cnn", "filters": 24, "minutes": 2}`` a network (a name, an architecture, or a trained
        Network) and the parameters of the network and of `train`. ``"trained_on"``, a mapping, trains on other
        parameters of the twin experiment than the test's: ``{"sites": 40}``.
    axes : mapping of str to sequence, or to mapping of label to value
        Parameters and the values that they run through: of the dynamics (`forcing`), of the twin experiment
        (`interval`, `observe`, `error_std`), of networks, of training, of methods. A scheme without such a parameter
        is the same along that axis.
    seeds : int or sequence of int
        How many, from 0 on, or which. A seed keys training and test record.
    cycles, trajectories, burn_in : int
        Of the test records.
    climatology : array or DataArray, shape (sample, *state), optional
        States that stand for the dynamics' own climatology, in twins, trainings and methods. Parameters of the dynamics
        are then no axes: other parameters have another climate.
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

    Examples
    --------
    >>> import xdan
    >>> schemes = {"3D-Var": {"baseline": "3d-var", "scale": 0.1}, "EnKF-N": {"baseline": "enkf-n", "members": 10}}
    >>> cube = xdan.sweep(xdan.Lorenz96(sites=8), schemes, {"forcing": [7.0, 8.0]}, cycles=9, trajectories=2, burn_in=5)
    >>> dict(cube.rmse.sizes)  # lazy: nothing was computed
    {'scheme': 2, 'forcing': 2, 'seed': 1}
    """
    retry, yes, progress = switch("retry", retry), switch("yes", yes), switch("progress", progress)
    experiment = TwinExperiment.of(experiment, {})
    experiment = replace(experiment, dynamics=with_climatology(experiment.dynamics, climatology))
    sizes = {"cycles": cycles, "trajectories": trajectories, "burn_in": burn_in}
    plan = SweepPlan.of(experiment, schemes, axes, seeds, sizes, yes)
    if store is not None:
        store = locate(store)
        check_rewritable(store)
    cell_store = None if store is None else CellStore(store, plan.describe())
    cells = list(plan.cells())
    missing = list({cell.key: cell for cell in cells}.values())
    if cell_store is not None:
        wanted = len(missing)
        missing = [cell for cell in missing if cell_store.missing(cell.key, retry)]
        if len(missing) < wanted:
            RUNS.info("%s goes on: %d of %d cells are there", store, wanted - len(missing), wanted)
    if len(missing) > MOST_CELLS and not yes:
        minutes = sum(float(cell.minutes) for cell in {c.training_key: c for c in missing}.values())
        raise ValueError(
            f"{len(missing)} cells are to be computed, with {minutes / 60:.1f} hours of training one after the other "
            f"(and as long as their steps take, where no minutes= are given): expected at most {MOST_CELLS}; pass "
            "yes=True to go on"
        )
    plan.check_cells(missing)
    tasks = _tasks(missing, cell_store, plan.trained, plan.experiment.dynamics.given_climate)
    if cell_store is None:
        return plan.cube(tasks)
    check_reachable(store)
    try:
        with writing(store):
            cell_store.begin()
            _compute(tasks, cell_store, progress)
            cell_store.finish(plan.cube({cell.key: cell_store.read(cell.key) for cell in cells}))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno, f"no room left for {store}: finished cells are kept; make room, and the same call goes on"
        ) from error
    # Loaded: a lazy cube would change its numbers with the next call on the store.
    loaded: xr.Dataset = xr.open_zarr(store, consolidated=False).load()
    return loaded


def _tasks(
    cells: Sequence[Cell], cell_store: CellStore | None, trained: Mapping[str, Network], climate: GivenClimate | None
) -> dict[str, Delayed]:
    """Delayed results by key; a training that cells share is one task, and so are a trained network and a climate."""
    shared = None if climate is None else dask.delayed(climate, traverse=False)
    trained_tasks = {key: dask.delayed(network, traverse=False) for key, network in trained.items()}
    networks: dict[str, Delayed] = {}
    for cell in cells:
        if cell.scheme.trains:
            networks[cell.training_key] = _network(cell.with_climate(None), shared, cell_store)
        elif (task := cell.scheme.trained_network(trained_tasks)) is not None:
            networks[cell.training_key] = task
    return {
        cell.key: _result(cell.key, cell.with_climate(None), shared, cell_store, networks.get(cell.training_key))
        for cell in cells
    }


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _network(cell: Cell, climate: GivenClimate | None, cell_store: CellStore | None) -> Network | str:
    """Train a network, or say why not."""
    in_block()
    cell = cell.with_climate(climate)
    try:
        return cell.train(None) if cell_store is None else cell_store.network(cell)
    except Exception as error:  # whatever it is, the other cells go on
        return _why(error)


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _result(
    key: str, cell: Cell, climate: GivenClimate | None, cell_store: CellStore | None, network: Network | str | None
) -> dict[str, Any]:
    in_block()
    cell = cell.with_climate(climate)
    try:
        scores: dict[str, Any] = {"failed": 1.0, "error": network} if isinstance(network, str) else cell.score(network)
    except Exception as error:
        scores = {"failed": 1.0, "error": _why(error)}
    if cell_store is not None:
        cell_store.write(key, scores)
    elif "error" in scores:
        warn_of([f"a cell failed: {scores['error']}"])
    return scores


def _why(error: BaseException) -> str:
    """What to keep of a failure; raised again where the disk is full, which is no fault of the cell's."""
    if _is_full(error):
        raise error
    return f"{type(error).__name__}: {error}"


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


class _Bar(Callback):  # type: ignore[misc]
    """Progress over some tasks of a local scheduler."""

    def __init__(self, keys: set[Any], bar: Any) -> None:
        super().__init__(posttask=self._seen)
        self.keys, self.bar, self.done = keys, bar, 0

    def _seen(self, key: Any, *_: Any) -> None:
        if key in self.keys:
            self.bar.update()
            self.done += 1
            RUNS.info("sweep: %d of %d cells are done", self.done, len(self.keys))


def _compute(tasks: Mapping[str, Delayed], cell_store: CellStore, progress: bool) -> None:
    """Compute on the scheduler that is active; without any, one cell after another with all cores."""
    wanted = list(tasks.values())
    with bar_of(len(wanted), "sweep", shown=progress, unit="cell") as bar:
        client = _client()
        if client is not None:
            from distributed import KilledWorker, as_completed

            futures = dict(zip(client.compute(wanted), tasks, strict=True))
            try:
                for future in as_completed(futures):
                    key = futures.pop(future)  # let go of: kept by a worker that dies, it would be computed again
                    if (error := future.exception()) is not None:
                        hint = _KILLED if isinstance(error, KilledWorker) else ""
                        cell_store.write(key, {"failed": 1.0, "error": _why(error) + hint})
                    bar.update()
                    RUNS.info("sweep: %d of %d cells are done", len(tasks) - len(futures), len(tasks))
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
