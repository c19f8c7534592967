"""Sweeps: many twin experiments. Any dask scheduler computes them cell by cell into a store."""

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
from ..core.keywords import checks_keywords
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

MOST_CELLS = 500  # a larger number is computed with yes=True only
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))  # a disk without room
_KILLED = " Out of memory, most likely: give workers a larger memory_limit, or take a smaller batch= or window="


@checks_keywords
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
    """Run many twin experiments: every scheme with every combination of parameters and every seed.

    If an experiment has a network to train, the network is trained on an endless twin. The experiment then cycles a
    test record that no training has seen, and scores the run. Experiments that share a network train it once.

    Parameters
    ----------
    experiment : TwinExperiment or Dynamics
        The experiment before axes change its parameters. A dynamics stands for a `TwinExperiment` with default
        parameters.
    schemes : mapping of str to mapping
        The methods and networks to compare, by their names in the result. ``{"baseline": "enkf-n", "members": 40}`` is
        a classical method with its parameters. ``{"network": "residual-cnn", "filters": 24, "minutes": 2}`` is a
        network (a name, an architecture, or a trained Network) with parameters of the network and of `train`. The
        mapping ``"trained_on"`` holds parameters of the twin experiment that differ in training from those of the
        test, such as ``{"sites": 40}``.
    axes : mapping of str to sequence, or to mapping of label to value
        Parameters and their values: of the dynamics (`forcing`), of the twin experiment (`interval`, `observe`,
        `error_std`), of networks, of training or of methods. A scheme without a parameter has equal scores along its
        axis.
    seeds : int or sequence of int
        The number of seeds, which begin with 0, or the seeds. A seed is the key of training and test record.
    cycles, trajectories, burn_in : int
        Number of cycles, of trajectories, and of cycles without scores, of the test records.
    climatology : array or DataArray, shape (sample, *state), optional
        States in the place of the dynamics' climatology, for twins, trainings and methods. Parameters of the dynamics
        may then be no axes, as other parameters have another climate.
    store : path or Zarr store, optional
        Store into which every cell is written once it is finished. The same call, or a call with more schemes, values
        or seeds, computes only the missing cells. Without a store the cube is lazy.
    retry : bool
        Whether to compute failed cells again.
    yes : bool
        Whether to go on if more than 500 cells must be computed, or the cube has more than 10,000.
    progress : bool
        Whether to show a progress bar; only with a store.

    Returns
    -------
    xarray.Dataset
        Scores with dims (scheme, *axes, seed), in memory if there is a store. A cell that failed is NaN, and its
        `failed` is 1. The attribute `errors` says why it failed; a lazy cube warns when it is computed.

    Raises
    ------
    TypeError, ValueError
        If no scheme takes a parameter, an axis has no values, there are too many cells, or an argument is wrong. All of
        this is checked before the computation.
    FileExistsError
        If the store holds another sweep, or no sweep.
    OSError
        If the disk is full. Finished cells are kept, and the same call goes on from them.
    KeyboardInterrupt
        At Ctrl-C. Finished cells and the checkpoint of a training are kept, and the same call goes on from them.

    Warns
    -----
    XdanWarning
        If a cell or a network in the store is damaged. It is computed again.

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
    tasks, titles = _tasks(missing, cell_store, plan.trained, plan.experiment.dynamics.given_climate)
    if cell_store is None:
        return plan.cube(tasks)
    check_reachable(store)
    try:
        with writing(store):
            cell_store.begin()
            _compute(tasks, titles, cell_store, progress)
            cell_store.finish(plan.cube({cell.key: cell_store.read(cell.key) for cell in cells}))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno, f"no room left for {store}: finished cells are kept; make room, and the same call goes on"
        ) from error
    # The cube is loaded: a lazy cube would change with the next call on the store.
    loaded: xr.Dataset = xr.open_zarr(store, consolidated=False).load()
    return loaded


def _tasks(
    cells: Sequence[Cell], cell_store: CellStore | None, trained: Mapping[str, Network], climate: GivenClimate | None
) -> tuple[dict[str, Delayed], dict[str, str]]:
    """Delayed results by key of the cell, and what the tasks do, by key of the task.

    A training that cells share is one task, and so are a trained network and a climate.
    """
    shared = None if climate is None else dask.delayed(climate, traverse=False)
    trained_tasks = {key: dask.delayed(network, traverse=False) for key, network in trained.items()}
    networks: dict[str, Delayed] = {}
    titles: dict[str, str] = {}
    for cell in cells:
        if cell.scheme.trains:
            if cell.training_key not in networks:
                task = networks[cell.training_key] = _network(cell.with_climate(None), shared, cell_store)
                titles[task.key] = f"training for {cell.title}"
        elif (task := cell.scheme.trained_network(trained_tasks)) is not None:
            networks[cell.training_key] = task
    results = {
        cell.key: _result(cell.key, cell.with_climate(None), shared, cell_store, networks.get(cell.training_key))
        for cell in cells
    }
    titles |= {results[cell.key].key: cell.title for cell in cells}
    return results, titles


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _network(cell: Cell, climate: GivenClimate | None, cell_store: CellStore | None) -> Network | str:
    """Train a network, or say why the training failed."""
    in_block()
    RUNS.info("sweep: the training for %s begins", cell.title)
    cell = cell.with_climate(climate)
    try:
        return cell.train(None) if cell_store is None else cell_store.network(cell)
    except Exception as error:  # after any error, the other cells go on
        return _why(error)


@dask.delayed(pure=False)  # type: ignore[untyped-decorator]
def _result(
    key: str, cell: Cell, climate: GivenClimate | None, cell_store: CellStore | None, network: Network | str | None
) -> dict[str, Any]:
    in_block()
    RUNS.info("sweep: %s begins", cell.title)
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
    """The text of a failure. If the disk is full, the error is raised again, as it is no fault of the cell."""
    if _is_full(error):
        raise error
    return f"{type(error).__name__}: {error}"


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


class _Bar(Callback):  # type: ignore[misc]
    """A progress bar over some tasks of a local scheduler. It says what was begun last.

    Parameters
    ----------
    keys : set of task key
        Tasks that count.
    titles : mapping of task key to str
        What each task does.
    bar : Bar
    """

    def __init__(self, keys: set[Any], titles: Mapping[Any, str], bar: Any) -> None:
        super().__init__(pretask=self._begun, posttask=self._seen)
        self.keys, self.titles, self.bar, self.done = keys, titles, bar, 0

    def _begun(self, key: Any, *_: Any) -> None:
        if key in self.titles:
            self.bar.set_postfix_str(self.titles[key])

    def _seen(self, key: Any, *_: Any) -> None:
        if key in self.keys:
            self.bar.update()
            self.done += 1
            RUNS.info("sweep: %d of %d cells are done", self.done, len(self.keys))


def _compute(tasks: Mapping[str, Delayed], titles: Mapping[str, str], cell_store: CellStore, progress: bool) -> None:
    """Compute on the active scheduler. Without one, compute one cell after another with all cores."""
    wanted = list(tasks.values())
    with bar_of(len(wanted), "sweep", shown=progress, unit="cell") as bar:
        client = _client()
        if client is not None:
            from distributed import KilledWorker, as_completed

            futures = dict(zip(client.compute(wanted), tasks, strict=True))
            try:
                for future in as_completed(futures):
                    key = futures.pop(future)  # released: otherwise it is computed again if its worker dies
                    if (error := future.exception()) is not None:
                        hint = _KILLED if isinstance(error, KilledWorker) else ""
                        cell_store.write(key, {"failed": 1.0, "error": _why(error) + hint})
                    bar.set_postfix_str(titles[tasks[key].key], refresh=False)
                    bar.update()
                    RUNS.info("sweep: %d of %d cells are done", len(tasks) - len(futures), len(tasks))
            except BaseException:
                client.cancel(list(futures))
                raise
        elif wanted:
            scheduler = None if dask.config.get("scheduler", None) else "synchronous"
            with _Bar({task.key for task in wanted}, titles, bar):
                dask.compute(*wanted, scheduler=scheduler)


def _client() -> Any:
    """The active distributed client, if there is one."""
    if dask.config.get("scheduler", None) not in (None, "dask.distributed"):
        return None
    try:
        from distributed import get_client

        return get_client()
    except (ImportError, ValueError):
        return None
