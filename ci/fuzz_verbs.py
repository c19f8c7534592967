"""Input of the fuzzer: records made with NumPy, the verbs with the values of their arguments, and oracles of results.

An oracle computes a result again from the labelled input, with NumPy or SciPy, and raises `Mismatch` if the two differ.
Oracles check only calls with right arguments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
import torch
import zarr.abc.store
import zarr.storage
from xarray import DataArray, Dataset, DataTree

import xdan
from xdan.core.learning import Optimiser
from xdan.core.methods import accepted_parameters
from xdan.core.methods.base import METHODS
from xdan.core.twin import TwinExperiment

Array = np.ndarray[Any, np.dtype[Any]]
Numbers = dict[str, Any]


class Mismatch(Exception):  # noqa: N818 - no fault of the program's
    """A result that differs from that of its oracle."""


# Models in NumPy, and in xdan.


def lorenz96(x: Array) -> Array:
    """dx/dt of Lorenz-96 with forcing 8, for states (..., N)."""
    return (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + 8.0


def lorenz63(x: Array) -> Array:
    """dx/dt of Lorenz-63, for states (..., 3)."""
    a, b, c = np.moveaxis(x, -1, 0)
    return np.stack([10.0 * (b - a), a * (28.0 - c) - b, a * b - 8.0 / 3.0 * c], -1)


def runge_kutta(tendency: Callable[[Array], Array], x: Array, timestep: float, steps: int) -> Array:
    """Advance by the classical fourth-order scheme."""
    for _ in range(steps):
        k1 = tendency(x)
        k2 = tendency(x + timestep / 2 * k1)
        k3 = tendency(x + timestep / 2 * k2)
        x = x + timestep / 6 * (k1 + 2 * k2 + 2 * k3 + tendency(x + timestep * k3))
    return x


MATRIX = np.array([[0.9, 0.3, 0.0], [-0.3, 0.9, 0.1], [0.0, 0.1, 0.7]])  # of the linear model, one step


def _linear_step(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.as_tensor(MATRIX.T, dtype=x.dtype)


@dataclass(frozen=True)
class Model:
    """A dynamics, and its NumPy version: `advance(x, steps)` for states (..., N)."""

    dynamics: xdan.Dynamics
    advance: Callable[[Array, int], Array]
    steps: int  # of an interval
    registered: bool = True

    @property
    def interval(self) -> float:
        """Model time between analyses."""
        return self.steps * self.dynamics.timestep


MODELS = {
    "lorenz96": Model(xdan.Lorenz96(sites=8), lambda x, n: runge_kutta(lorenz96, x, 0.05, n), 1),
    "lorenz63": Model(xdan.Lorenz63(), lambda x, n: runge_kutta(lorenz63, x, 0.01, n), 5),
    "linear": Model(
        xdan.CustomDynamics(step=_linear_step, state={"x": 3}, timestep=0.1, spin_up_time=0.1, name="linear"),
        lambda x, n: x @ np.linalg.matrix_power(MATRIX, n).T,
        1,
        registered=False,
    ),
}


# Records made without xdan.


@dataclass(frozen=True)
class Source:
    """A record, with the model that it follows."""

    model: Model
    ds: Dataset

    @property
    def roles(self) -> dict[str, Any]:
        """Arguments that the record cannot do without."""
        return {} if self.model.registered else {"dynamics": self.model.dynamics}

    @property
    def whole(self) -> Dataset:
        """The record with a trajectory dim."""
        return self.ds if "trajectory" in self.ds.dims else self.ds.expand_dims(trajectory=[0])

    def values(self, name: str, burn_in: int = 0) -> Array:
        """A variable in float64, dims (trajectory, time, *rest)."""
        return self.whole[name].transpose("trajectory", "time", ...).values.astype(np.float64)[:, burn_in:]

    @property
    def error(self) -> Array:
        """R, (P, P)."""
        if "observation_error_covariance" in self.ds:
            return self.ds["observation_error_covariance"].values
        size = self.values("observation").shape[-1]
        return np.diag(np.broadcast_to(self.ds["observation_error"].values.astype(np.float64), size) ** 2)


def record(
    model: str,
    *,
    seed: int,
    trajectories: int = 3,
    cycles: int = 12,
    steps: int | None = None,
    std: float | Sequence[float] = 1.0,
    covariance: Array | None = None,
    seen: Callable[[np.random.Generator, tuple[int, ...]], Array] | None = None,
    matrix: Array | None = None,
    dtype: str = "float32",
    observing: Mapping[str, Any] | None = None,
) -> Source:
    """A truth by the model in NumPy, and observations of this truth with the errors of the caller."""
    draw, made = np.random.default_rng(seed), MODELS[model]
    dims, size = made.dynamics.dims, math.prod(made.dynamics.shape)
    steps = made.steps if steps is None else steps
    x = made.advance(draw.standard_normal((trajectories, size)) + (8.0 if model == "lorenz96" else 1.0), 400 * steps)
    if model == "linear":
        x = draw.standard_normal((trajectories, size))
    states = [x]
    for _ in range(cycles - 1):
        states.append(made.advance(states[-1], steps))
    truth = np.stack(states, 1)
    y = truth if matrix is None else truth @ matrix.T
    root = np.linalg.cholesky(covariance) if covariance is not None else np.diag(np.broadcast_to(std, y.shape[-1]))
    y = y + draw.standard_normal(y.shape) @ root.T
    if seen is not None:
        y = np.where(seen(draw, y.shape), y, np.nan)
    lead, along = ("trajectory", "time"), dims if matrix is None else ("obs",)
    variables: dict[str, Any] = {
        "truth": ((*lead, *dims), truth.astype(dtype), {"xdan_role": "truth", "units": "1"}),
        "observation": ((*lead, *along), y.astype(dtype), {"xdan_role": "observation", "units": "1"}),
    }
    if covariance is not None:
        both = (*along, *(f"{dim}_dual" for dim in along))
        variables["observation_error_covariance"] = (both, covariance, {"xdan_role": "observation_error_covariance"})
    else:
        variables["observation_error"] = (along if np.ndim(std) else (), np.array(std), {"units": "1"})
    if matrix is not None:
        variables["observation_operator"] = (("obs", *dims), matrix)
    coordinates = {
        "trajectory": np.arange(trajectories),
        "time": ("time", np.round(np.arange(cycles) * steps * made.dynamics.timestep, 9), {"axis": "T", "units": "1"}),
        **{dim: list(c.values) for dim, c in made.dynamics.coordinates.items()},
    }
    attributes = {"title": "made by NumPy"}
    if made.registered:
        description = {"name": made.dynamics.name, "parameters": made.dynamics.config()}
        attributes["dynamics"] = json.dumps(description)
    if observing is not None:
        attributes["observing"] = json.dumps({"name": "sites", "parameters": dict(observing)})
    return Source(made, Dataset(variables, coordinates, attributes))


def _gaps(draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return draw.random(shape) < 0.7


def _every_other(draw: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.arange(shape[-1]) % 2 == 0, shape)


def _smooth(size: int) -> Array:
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return np.asarray(0.5 ** np.minimum(apart, size - apart).astype(np.float64))


_ALL, _EVERY = {"kind": "all"}, {"kind": "every", "step": 2, "offset": 0}
RECORDS: dict[str, Callable[[], Source]] = {
    "whole": lambda: record("lorenz96", seed=1, observing=_ALL),
    "gaps": lambda: record("lorenz96", seed=2, seen=_gaps),
    "alternate": lambda: record("lorenz96", seed=3, seen=_every_other, observing=_EVERY),
    "uneven": lambda: record("lorenz96", seed=4, std=np.linspace(0.5, 1.5, 8).tolist()),
    "correlated": lambda: record("lorenz96", seed=5, covariance=_smooth(8)),
    "double": lambda: record("lorenz96", seed=6, dtype="float64", observing=_ALL),
    "single": lambda: _bare(record("lorenz96", seed=7, trajectories=1)),
    "instant": lambda: record("lorenz96", seed=8, cycles=1),
    "lorenz63": lambda: record("lorenz63", seed=9),
    "linear": lambda: record("linear", seed=10, trajectories=6, dtype="float64"),
    "operator": lambda: record("lorenz96", seed=11, matrix=_smooth(8)[:5]),
    "slow": lambda: record("lorenz96", seed=12, steps=2),
    "loose": lambda: record("lorenz96", seed=13, std=3.0),
}


def _bare(made: Source) -> Source:
    return Source(made.model, made.ds.isel(trajectory=0, drop=True))


@lru_cache
def source(name: str) -> Source:
    """One of `RECORDS`."""
    return RECORDS[name]()


@lru_cache
def run_of(name: str, method: str) -> Dataset:
    """A run with members or memory on one of `RECORDS`, by a baseline or by one of `NETWORKS`."""
    made = source(name)
    if method in NETWORKS:
        net = network(method)
        return xdan.cycle(made.ds, net, members=bool(net.memory or net.ensemble), progress=False, **made.roles)
    return xdan.baseline(made.ds, method, members=4, keep_members=True, **made.roles)


NETWORKS: dict[str, Callable[[], Any]] = {
    "cnn": lambda: xdan.ResidualCNN(filters=3, blocks=1, kernel=3),
    "memory": lambda: xdan.ResidualCNN(filters=3, blocks=1, kernel=3, memory=2),
    "linear-in-zeta": lambda: xdan.LinearInZeta(form="hypernetwork", rank=3, width=3, filters=3, blocks=1, kernel=3),
    "ensemble": lambda: xdan.EnsembleCNN(members=3, filters=3, blocks=1, kernel=3),
}


@lru_cache
def network(name: str) -> xdan.Network:
    """Train one of `NETWORKS` for a few steps, and perturb its weights so that its derivatives are not small."""
    trained = xdan.train(MODELS["lorenz96"].dynamics, NETWORKS[name](), steps=3, batch=4, window=2, progress=False)
    draw, size = np.random.default_rng(3), 0.02 if name == "linear-in-zeta" else 0.1
    arrays = dict(trained.arrays)
    for key, value in trained.arrays.items():
        if "weights" in key:
            arrays[key] = (value + size * draw.standard_normal(value.shape)).astype(value.dtype)
    return xdan.Network(trained.description, arrays, trained.history)


def prepare() -> None:
    """Make all objects that calls share, before the processes fork."""
    for name in NETWORKS:
        network(name)
    for name in RECORDS:
        source(name)
        run_of(name, "etkf")
    for name in ("whole", "gaps", "alternate", "uneven"):
        for kind in NETWORKS:
            run_of(name, kind)
    omega()


@lru_cache
def omega() -> DataArray:
    """A symmetry average of a network."""
    return xdan.gain(source("whole").ds, network("cnn")).compute()


@lru_cache
def cube() -> Dataset:
    """A sweep's scores that follow a scaling law exactly: alpha 0.3, beta 0.18, gamma 1."""
    n, s = np.array([16.0, 64.0, 256.0, 1024.0]), np.array([4.0, 8.0, 16.0])
    u = (n[:, None] / s**0.6) ** 0.3
    values = (1.5 - 0.2 * u + 0.01 * u**2)[None, :, :, None]
    coordinates = {"scheme": ["net"], "trajectories": n, "batch": s, "seed": [0]}
    return Dataset({"rmse": (("scheme", "trajectories", "batch", "seed"), values)}, coordinates)


# Kinds of arguments.


@dataclass(frozen=True)
class Kind:
    """The values that an argument may take.

    Attributes
    ----------
    usual : tuple
        Right values; callables marked by `Fresh` make one.
    judge : callable
        Whether a value is right; None if this is not known.
    work : bool
        Whether a huge value means much work; it is then not drawn.
    """

    usual: tuple[Any, ...]
    judge: Callable[[Any], bool | None]
    work: bool = False


@dataclass(frozen=True)
class Fresh:
    """Makes a value for each call, from the folder of the call."""

    make: Callable[[Path], Any]


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind; bools and NumPy's timedeltas are not, though they are integers."""
    return isinstance(value, kind) and not isinstance(value, (bool, np.bool_, np.timedelta64))


def _is_scalar_array(value: Any) -> bool:
    """Whether a value is an array without dims. Such arrays are neither right nor wrong."""
    return isinstance(value, (np.ndarray, DataArray, torch.Tensor)) and value.ndim == 0


def count(
    *usual: Any, least: int | None = None, most: int | None = None, optional: bool = False, work: bool = False
) -> Kind:
    """Integers, NumPy's too."""

    def judge(value: Any) -> bool | None:
        if value is None:
            return optional
        if _is_scalar_array(value):
            return None
        if not _is_of(value, Integral):
            return False
        return (least is None or value >= least) and (most is None or value <= most)

    return Kind(usual, judge, work)


def number(
    *usual: Any,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    words: Sequence[str] = (),
    arrays: bool = False,
    optional: bool = False,
    work: bool = False,
) -> Kind:
    """Finite real numbers, NumPy's too; some take a word or an array as well."""

    def judge(value: Any) -> bool | None:
        if value is None:
            return optional
        if isinstance(value, str):
            return value in words
        if _is_scalar_array(value) or (
            arrays and isinstance(value, (np.ndarray, DataArray, torch.Tensor, list, tuple))
        ):
            return None
        if not _is_of(value, Real):
            return False
        size = float(value)
        inside = (
            math.isfinite(size)
            and (above is None or size > above)
            and (least is None or size >= least)
            and (below is None or size < below)
            and (most is None or size <= most)
        )
        extreme = size != 0 and not 1e-6 < abs(size) < 1e6  # allowed, but no result can be foretold
        return (None if extreme else True) if inside else False

    return Kind(usual, judge, work)


def switch() -> Kind:
    """True or False."""
    return Kind((True, False), _is_bool)


def choice(*usual: Any, also: Sequence[str] = (), optional: bool = False) -> Kind:
    """One of some names."""
    names = {name for name in usual if name is not None} | set(also)
    return Kind(usual, lambda v: optional if v is None else isinstance(v, str) and v in names)


def thing(*usual: Any, of: type | tuple[type, ...], optional: bool = False) -> Kind:
    """Objects of a class."""
    return Kind(usual, lambda v: optional if v is None else isinstance(v, of))


def free(*usual: Any, wrong: type | tuple[type, ...] = ()) -> Kind:
    """Any value; only values of some classes are known to be wrong."""
    return Kind(usual, lambda v: False if wrong and isinstance(v, wrong) else None)


SEED = count(0, 1, 7, least=0, most=2**32 - 1)
DEVICE = choice("cpu", "auto")
BURN_IN = count(0, 1, 3, least=0)
EVERY = count(1, 2, least=1)
DYNAMICS = thing(None, of=xdan.Dynamics, optional=True)
VARIABLE = free(None, wrong=(bool, complex, bytes, set, slice, int, float, DataTree))
ERROR = free(None, wrong=(bool, complex, bytes, set, slice, np.datetime64, DataTree))
ROLES = {
    "dynamics": DYNAMICS,
    "truth": VARIABLE,
    "observation": VARIABLE,
    "observation_error": ERROR,
}
PROGRESS = Kind((False,), lambda v: True if _is_bool(v) else (None if isinstance(v, Mapping) else False))
STORE = Kind(
    (None, Fresh(lambda folder: folder / "run.zarr"), Fresh(lambda folder: str(folder / "run.zarr"))),
    lambda v: None if v is None or isinstance(v, (str, Path, dict, zarr.abc.store.Store)) else False,
)
NETWORK = thing(of=xdan.Network)
RUN = thing(of=Dataset)
SITES_OBSERVED = thing(
    xdan.Sites.all(), xdan.Sites.every(2), xdan.Sites.every(3, 1), xdan.Sites.random(1, 3), None, of=xdan.Sites,
    optional=True,
)  # fmt: skip


@dataclass(frozen=True)
class Verb:
    """A public function: its arguments, the parts of a record that it reads, and its oracle.

    Attributes
    ----------
    name : str
    function : callable
        Takes arguments by name, and returns a computed result.
    kinds : mapping of str to Kind
    check : callable
        Oracle: takes the `Call` and the result.
    needs : tuple of str
        Arguments that are always passed.
    records : tuple of str
        Names in `RECORDS` that `ds` may be.
    run : str
        Method of the argument `run`; empty if there is no such argument. "network" is the network of the call.
    networks : tuple of str
        Names in `NETWORKS` that `network` may be.
    reads : frozenset of str
        Parts of a record on which the result depends. A fault in one of them must be named.
    alone : bool
        Whether the result of a trajectory is independent of the other trajectories.
    draws : bool
        Whether results start from states that are spun up from random numbers.
    weight : float
        How often it is called.
    record : str
        Name of the argument that takes the record.
    forms : tuple of callable
        Changes of the run after which it is still right.
    """

    name: str
    function: Callable[..., Any]
    kinds: Mapping[str, Kind]
    check: Callable[[Call, Any], None]
    needs: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    run: str = ""
    networks: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    alone: bool = False
    draws: bool = False
    weight: float = 1.0
    record: str = "ds"
    forms: tuple[Callable[[Dataset], Dataset], ...] = (lambda run: run,)


@dataclass
class Call:
    """A verb with the arguments that were drawn for it.

    Attributes
    ----------
    plain : dict
        Right arguments.
    arguments : dict
        The arguments that are passed: `plain`, or a changed copy.
    shown : dict of str to str
        Arguments in words.
    verdict : {"right", "wrong", "unknown"}
        What is known of the arguments.
    match : callable or None
        If the arguments mean the same as the plain ones: the change of the plain result before the comparison.
    tolerance : float
        Relative tolerance of the comparison.
    warned : bool
        Whether an XdanWarning was given.
    """

    verb: Verb
    record: str = ""
    plain: Numbers = field(default_factory=dict)
    arguments: Numbers = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    verdict: str = "right"
    match: Callable[[Any], Any] | None = None
    tolerance: float = 1e-3
    warned: bool = False

    @property
    def source(self) -> Source:
        """The record, as it was before any change."""
        return source(self.record)

    def get(self, name: str, default: Any = None) -> Any:
        """A right argument."""
        value = self.plain.get(name, default)
        return default if value is None else value


def close(what: str, value: Any, expected: Any, rtol: float = 2e-3, atol: float = 2e-3) -> None:
    """Compare two arrays; NaN equals NaN."""
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    if value.shape != expected.shape:
        raise Mismatch(f"{what} has shape {value.shape}, expected {expected.shape}")
    if not np.allclose(value, expected, rtol, atol, equal_nan=True):
        off = np.where(np.isnan(value) == np.isnan(expected), np.abs(value - expected), np.inf)
        place = np.unravel_index(int(np.nanargmax(off)), off.shape)
        raise Mismatch(f"{what}{list(map(int, place))} is {value[place]:.6g}, expected {expected[place]:.6g}")


def claim(what: str, holds: Any) -> None:
    """Raise where something does not hold."""
    if not bool(holds):
        raise Mismatch(what)


def finite(what: str, value: Any) -> None:
    """Raise where values are not finite."""
    claim(f"{what} is not finite", np.isfinite(np.asarray(value, np.float64)).all())


def arranged(result: Dataset, name: str) -> Array:
    """A variable of a run in float64, (trajectory, time, *rest)."""
    variable = result[name]
    if "trajectory" not in variable.dims:
        variable = variable.expand_dims("trajectory")
    return variable.transpose("trajectory", "time", ...).values.astype(np.float64)


# Twins and constructors.


def check_twin(call: Call, ds: Dataset) -> None:
    """The truth follows NumPy's model, and the observations scatter about it as they should."""
    model = next(m for m in MODELS.values() if m.dynamics is call.plain["experiment"])
    cycles, trajectories = call.get("cycles", 1000), call.get("trajectories", 1)
    single = call.get("dtype", "float32") == "float32"
    truth, y = (ds[name].values.astype(np.float64) for name in ("truth", "observation"))
    claim("the truth has another shape", truth.shape[:2] == (trajectories, cycles))
    claim("the dtype is another", ds["truth"].dtype == call.get("dtype", "float32"))
    interval = np.broadcast_to(call.get("interval", 0.05), cycles - 1)
    close("time", ds["time"], np.concatenate([[0.0], np.cumsum(interval)]), 0, 1e-8)
    for k, length in enumerate(interval):
        after = model.advance(truth[:, k], round(length / model.dynamics.timestep))
        tolerance = 1e-3 if single else 1e-9
        close(f"truth at time {k + 1}", truth[:, k + 1], after, tolerance, tolerance)
    seen = np.isfinite(y)
    sites = call.get("observe", xdan.Sites.all())
    size = y.shape[-1]
    if sites.kind == "random":
        number_seen = seen.sum(-1)
        claim("another number of sites is observed", ((number_seen >= sites.low) & (number_seen <= sites.high)).all())
    else:
        rule = np.ones(size, bool) if sites.kind == "all" else np.arange(size) % sites.step == sites.offset
        claim("other sites are observed", (seen == rule).all())
    operator, std = call.get("operator"), np.asarray(call.get("error_std", 1.0), np.float64)
    difference = y - (truth if operator is None else truth @ np.asarray(operator).T)
    if (covariance := call.get("error_covariance")) is not None:
        if not seen.all():
            return
        scaled = np.linalg.solve(np.linalg.cholesky(covariance), difference.reshape(-1, size).T).ravel()
    else:
        scaled = (difference / std)[seen]
    n = len(scaled)
    claim("observation errors are biased", abs(scaled.mean()) < 6 / math.sqrt(n))
    claim("observation errors have another size", n < 30 or abs(scaled.std() - 1) < 6 / math.sqrt(n))


TWIN = Verb(
    "twin",
    lambda **a: xdan.twin(**a).compute(),
    {
        "experiment": thing(*(m.dynamics for m in MODELS.values()), of=xdan.Dynamics),
        "interval": number(0.1, 0.2, above=0, arrays=True, work=True),
        "cycles": count(1, 4, 12, least=1),
        "trajectories": count(1, 2, 3, least=1),
        "observe": SITES_OBSERVED,
        "error_std": number(1.0, 0.5, 2, above=0, arrays=True, optional=True),
        "error_covariance": free(None, wrong=(bool, complex, str, bytes, set, slice, dict)),
        "operator": free(None, wrong=(bool, complex, str, bytes, set, slice)),
        "seed": SEED,
        "chunks": free(None, {"time": 2}, {"trajectory": 1}, wrong=(bool, int, float, complex, str, bytes, slice)),
        "dtype": choice("float32", "float64"),
    },
    check_twin,
    needs=("experiment", "cycles", "interval"),
    weight=4,
)


def check_step(call: Call, made: Any) -> None:
    """A step of a constructed dynamics, against NumPy's Runge-Kutta scheme."""
    size = math.prod(made.shape)
    x = np.linspace(-1.0, 2.0, size)
    tendencies: dict[str, Callable[[Array], Array]] = {
        "Lorenz96": lambda x: lorenz96(x) - 8.0 + call.get("forcing", 8.0),
        "Lorenz63": lambda x: lorenz63(x) + 0.0,
        "CustomDynamics": lambda x: -x,
    }
    if call.verb.name == "Lorenz63" and {"sigma", "rho", "beta"} & set(call.plain):
        s, r, q = call.get("sigma", 10.0), call.get("rho", 28.0), call.get("beta", 8 / 3)
        tendencies["Lorenz63"] = lambda x: np.stack(
            [s * (x[1] - x[0]), x[0] * (r - x[2]) - x[1], x[0] * x[1] - q * x[2]]
        )
    expected = runge_kutta(tendencies[call.verb.name], x, made.timestep, 3)
    after = made.advance(torch.from_numpy(x).reshape(1, *made.shape), 3).numpy().reshape(size)
    close("three steps", after, expected, 1e-9, 1e-9)
    json.dumps(made.config())


def check_sites(call: Call, sites: xdan.Sites) -> None:
    """Which of twelve sites a network sees."""
    seen = sites.mask(12, torch.arange(3), torch.arange(5), 0).numpy()
    if call.verb.name == "Sites.every":
        rule = np.arange(12) % call.plain["step"] == call.get("offset", 0)
        claim("other sites are observed", (seen == rule).all())
    elif call.verb.name == "Sites.random":
        low = call.plain["low"]
        claim("another number is observed", ((seen.sum(-1) >= low) & (seen.sum(-1) <= call.get("high", low))).all())
    json.dumps(sites.to_json())


_TIMESTEP = number(0.01, 0.05, 0.025, above=0, most=0.05)
CONSTRUCTORS = [
    Verb(
        "Lorenz96",
        xdan.Lorenz96,
        {"sites": count(4, 8, 40, least=4, work=True), "forcing": number(8.0, 0, -3.5), "timestep": _TIMESTEP},
        check_step,
    ),
    Verb(
        "Lorenz63",
        xdan.Lorenz63,
        {
            "sigma": number(10.0, 9, above=0),
            "rho": number(28.0, 0.5, -1),
            "beta": number(8 / 3, 2, above=0),
            "timestep": _TIMESTEP,
        },
        check_step,
    ),
    Verb(
        "CustomDynamics",
        xdan.CustomDynamics,
        {
            "tendency": free(torch.neg, wrong=(bool, int, float, complex, str, bytes, list, dict, np.ndarray)),
            "state": free(
                {"x": 5}, {"x": 3}, {"c": ("a", "b")}, {"y": 2, "x": 3}, wrong=(bool, int, float, str, bytes)
            ),
            "timestep": number(0.1, 0.01, 1, above=0),
            "name": Kind(("decay",), lambda v: isinstance(v, str)),
            "spin_up_time": number(0.0, 20.0, 5, least=0, work=True),
            "units": Kind(("K", "1"), lambda v: isinstance(v, str)),
            "rest": free(None, torch.abs, wrong=(bool, int, float, complex, str, bytes, list, dict, np.ndarray)),
            "distance": free(None, wrong=(bool, int, float, complex, str, bytes, list, dict, np.ndarray)),
        },
        check_step,
        needs=("tendency", "state", "timestep"),
    ),
    Verb(
        "Sites.every",
        xdan.Sites.every,
        {"step": count(2, 3, 4, least=1), "offset": count(0, 1, least=0)},
        check_sites,
        needs=("step",),
    ),
    Verb(
        "Sites.random",
        xdan.Sites.random,
        {"low": count(1, 3, least=0), "high": count(5, 3, least=0, optional=True)},
        check_sites,
        needs=("low",),
    ),
]


# Runs of methods.


def update(x: Array, p: Array, y: Array, r: Array) -> tuple[Array, Array]:
    """Kalman analysis of a state and its covariance; NaN where nothing is observed."""
    seen = np.isfinite(y)
    if not seen.any():
        return x, p
    gain = p[:, seen] @ np.linalg.inv(p[np.ix_(seen, seen)] + r[np.ix_(seen, seen)])
    return x + gain @ (y - x)[seen], p - gain @ p[seen]


def _check_members(run: Dataset) -> None:
    """Mean and spread are those of the members."""
    for of, mean, spread in (("members", "analysis", "spread"), ("forecast_members", "forecast", "forecast_spread")):
        if of in run:
            members = arranged(run, of)
            close(mean, arranged(run, mean), members.mean(2))
            close(spread, arranged(run, spread), members.std(2, ddof=1))


def _check_forecast(call: Call, run: Dataset, before: str, after: str) -> None:
    """What lies between two analyses is a run of the model."""
    model, steps = call.source.model, call.source.model.steps
    if call.record == "slow":
        steps = 2
    start, end = arranged(run, before)[:, :-1], arranged(run, after)[:, 1:]
    scale = 1e-3 * max(1.0, float(np.abs(end).max(initial=0.0)))
    close(after, end, model.advance(start, steps), 1e-3, scale)


def _check_etkf(call: Call, run: Dataset) -> None:
    """Mean and covariance of the members after the first cycle, against the Kalman update of those before."""
    inflation = call.get("inflation", 1.01)
    if isinstance(inflation, str) or call.get("relaxation") is not None:
        return
    factor, r, y = float(inflation) ** 2, call.source.error, call.source.values("observation")
    before, after = arranged(run, "forecast_members"), arranged(run, "members")
    for i, k in np.ndindex(before.shape[0], before.shape[1] - 1):
        x, p = before[i, k + 1], np.cov(before[i, k + 1].T)
        mean, covariance = update(x.mean(0), p, y[i, k + 1], r)
        close("analysis", after[i, k + 1].mean(0), mean, 1e-2, 1e-2)
        close("analysis covariance", np.cov(after[i, k + 1].T), factor * covariance, 2e-2, 1e-2 * max(1.0, p.max()))


def _check_finite_size(call: Call, run: Dataset) -> None:
    """Zeta is a minimum of the capped dual, on a fine grid; the mean is the update that it stands for."""
    r, y, members = call.source.error, call.source.values("observation"), arranged(run, "forecast_members")
    m = members.shape[2]
    if call.get("form", "dual") != "dual":
        return
    inflation, after = arranged(run, "inflation"), arranged(run, "analysis")
    for i, k in np.ndindex(members.shape[0], members.shape[1] - 1):
        x, seen = members[i, k + 1], np.isfinite(y[i, k + 1])
        zeta = (m - 1) / inflation[i, k + 1] ** 2
        root = np.linalg.cholesky(r[np.ix_(seen, seen)])
        anomalies = np.linalg.solve(root, (x - x.mean(0))[:, seen].T)
        d = np.linalg.solve(root, (y[i, k + 1] - x.mean(0))[seen])

        def cost(z: float, anomalies: Array = anomalies, d: Array = d) -> float:
            inner = np.eye(len(d)) + anomalies @ anomalies.T / z
            return float(d @ np.linalg.solve(inner, d) + m / (m - 1) * z - (m + 1) * math.log(z))

        top = m - 1 if call.get("capped", True) else 20.0 * m
        least = min(cost(z) for z in np.geomspace(1e-3, top, 80))
        claim(f"zeta={zeta:.4g} costs {cost(zeta):.4g}, the least is {least:.4g}", cost(zeta) < least + 2e-2)
        mean, _ = update(x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0)) / zeta, y[i, k + 1], r)
        close("analysis", after[i, k + 1], mean, 2e-2, 2e-2)


def _check_given_background(call: Call, run: Dataset) -> None:
    """3D-Var with a matrix for B, by its formula."""
    b, scale = call.get("background"), call.get("scale")
    if not isinstance(b, np.ndarray) or isinstance(scale, str) or scale is None:
        return
    x, after, y = arranged(run, "forecast"), arranged(run, "analysis"), call.source.values("observation")
    for i, k in np.ndindex(x.shape[0], x.shape[1] - 1):
        mean, p = update(x[i, k + 1], float(scale) * b, y[i, k + 1], call.source.error)
        close("analysis", after[i, k + 1], mean)
        close("spread", arranged(run, "spread")[i, k + 1], np.sqrt(np.diag(p)))


def _solve_gain(innovation: Array, increment: Array) -> Array:
    """K of increments that are K times innovations, rows (n, P) and (n, N)."""
    solved: Array = np.linalg.lstsq(innovation, increment, rcond=None)[0].T
    close("increments beside K d", innovation @ solved.T, increment, 1e-2, 1e-2)
    return solved


def _check_interpolation(call: Call, run: Dataset) -> None:
    """Gain, background and spreads of optimal interpolation, solved for from the increments."""
    x, after, y, r = (
        arranged(run, "forecast"),
        arranged(run, "analysis"),
        call.source.values("observation"),
        call.source.error,
    )
    close("forecast", x, np.broadcast_to(x[0, 0], x.shape))
    size = x.shape[-1]
    if not np.isfinite(y).all() or y.shape[0] * y.shape[1] < 2 * size:
        return
    gain = _solve_gain((y - x).reshape(-1, size), (after - x).reshape(-1, size))
    b = np.linalg.solve(np.eye(size) - gain, gain @ r)
    close("spread", arranged(run, "spread")[0, 0] ** 2, np.diag(gain @ r), 2e-2, 1e-2)
    close("forecast spread", arranged(run, "forecast_spread")[0, 0] ** 2, np.diag(b), 5e-2, 5e-2)


def _check_kalman(call: Call, run: Dataset) -> None:
    """The Kalman filter on the linear model, from the covariance that its first analyses show."""
    if call.record != "linear" or call.get("inflation", 1.0) != 1.0:
        return
    x, after, y, r = (
        arranged(run, "forecast"),
        arranged(run, "analysis"),
        call.source.values("observation"),
        call.source.error,
    )
    gain = _solve_gain((y - x)[:, 0], (after - x)[:, 0])
    start = np.linalg.solve(np.eye(len(gain)) - gain, gain @ r)
    close("forecast spread at first", arranged(run, "forecast_spread")[0, 0] ** 2, np.diag(start), 1e-5, 1e-6)
    for i in range(len(y)):
        mean, p = x[i, 0], start
        for k in range(y.shape[1]):
            if k:
                mean, p = MATRIX @ mean, MATRIX @ p @ MATRIX.T
            mean, p = update(mean, p, y[i, k], r)
            close(f"analysis at time {k}", after[i, k], mean, 1e-5, 1e-5)
            close(f"spread at time {k}", arranged(run, "spread")[i, k], np.sqrt(np.diag(p)), 1e-5, 1e-5)


_ONE_STATE = ("3d-var", "kalman", "extended-kalman", "state-covariance")
_FREE_MEMBERS = ("enkf", "etkf", "letkf", "enkf-n")
_BY_FORMULA: dict[str, Callable[[Call, Dataset], None]] = {
    "enkf-n": _check_finite_size,
    "3d-var": _check_given_background,
    "optimal-interpolation": _check_interpolation,
    "kalman": _check_kalman,
    "extended-kalman": _check_kalman,
}


def check_baseline(call: Call, run: Dataset) -> None:
    """What any run of the method must be, and its formula where it has one that can be seen from the run."""
    method, y = call.plain["name"], call.source.values("observation")
    lost = arranged(run, "diverged").astype(bool)
    if lost.any():
        claim("every trajectory diverged without a word", call.warned or not lost.any(1).all())
        return
    claim("the run has other times", arranged(run, "analysis").shape[:2] == y.shape[:2])
    for name in ("forecast", "analysis"):
        finite(name, run[name])
    if method not in ("particle", "optimal-particle", "eda"):
        _check_members(run)
    if method in _ONE_STATE:
        _check_forecast(call, run, "analysis", "forecast")
    if method in _FREE_MEMBERS and "members" in run:
        _check_forecast(call, run, "members", "forecast_members")
    if method == "etkf" and "members" in run and call.get("spin_up", 100) == 0 and call.record != "operator":
        _check_etkf(call, run)
    if method == "enkf-n" and "members" not in run:
        return
    if method in _BY_FORMULA and call.record != "operator":
        _BY_FORMULA[method](call, run)
    if "effective_sample_size" in run:
        size, most = arranged(run, "effective_sample_size"), call.plain["members"]
        claim("an effective sample size is out of bounds", ((size > 0.99) & (size < most * 1.01)).all())


_INFLATION = number(1.0, 1.05, 1, above=0, words=("tune",))
_WINDOW = {
    "window": count(1, 2, 3, least=1),
    "solver": choice("gauss-newton", "l-bfgs"),
    "tolerance": number(1e-3, 0.1, above=0),
    "iterations": count(5, 10, least=1, work=True),
}
_MEMBERS = count(3, 4, 5, least=2)
_ITERATIVE = {
    "members": _MEMBERS,
    "capped": switch(),
    "variant": choice("transform", "bundle"),
    "tolerance": number(1e-3, 0.1, above=0),
    "iterations": count(3, 10, least=1, work=True),
}
_MODEL_NOISE = choice("draws", "sqrt-core")
_ADAPTIVE = {
    "members": _MEMBERS,
    "inflation": number(1.0, 1.05, 1, "adaptive", above=0, words=("tune", "adaptive")),
    "model_noise": _MODEL_NOISE,
    "relaxation": choice("rtps", "rtpp", None, optional=True),
    "relaxation_factor": number(0.0, 0.3, 1.0, least=0, most=1),
    "inflation_std": number(0.1, 0.5, above=0),
}
_LOCAL = {"radius": number(2.0, 5.5, None, above=0, words=("tune",), optional=True)}
_SCALE = number(0.1, 1, 0.02, above=0, words=("tune",))
_B = free(0.5 * _smooth(8), "climatology", wrong=(bool, complex, bytes, set, slice, int, float))
_SPIN_UP = count(0, 2, 100, least=0)
_FALSE = Kind((False,), _is_bool)
PARAMETERS: dict[str, dict[str, Kind]] = {
    "climatology": {},
    "optimal-interpolation": {},
    "3d-var": {"background": _B, "scale": _SCALE},
    "4d-var": {"background": _B, "scale": _SCALE, **_WINDOW},
    "eda": {"members": _MEMBERS, "background": _B, "scale": number(0.1, 0.05, above=0), **_WINDOW},
    "kalman": {"inflation": _INFLATION},
    "extended-kalman": {"inflation": _INFLATION},
    "state-covariance": {
        "algorithm": choice("A1", "A2"),
        "depth": count(2, 5, 10, least=1),
        "past": choice("analyses", "dynamics"),
        "c2": number(0.0, 0.1, least=0),
        "epsilon": number(1.0, 0.1, above=0),
        "inflation": _INFLATION,
    },
    "second-order-kalman": {"inflation": _INFLATION, "c2": number(0.5, 2.0, above=0, words=("tune",))},
    "enkf": {**_ADAPTIVE, "spin_up": _SPIN_UP},
    "etkf": {**_ADAPTIVE, "rotate": switch(), "spin_up": _SPIN_UP},
    "letkf": {**_ADAPTIVE, "radius": number(2.0, 5.5, 3, above=0, words=("tune",)), "spin_up": _SPIN_UP},
    **{name: {**_ADAPTIVE, **_LOCAL, "spin_up": _SPIN_UP} for name in ("denkf", "eakf", "ensrf", "rank-histogram")},
    "hybrid-envar": {
        **_ADAPTIVE,
        **_LOCAL,
        "static_weight": number(0.0, 0.1, 1.0, least=0, most=1),
        "background": _B,
        "scale": number(0.1, 1, above=0),
        "anomalies": choice("ensemble", "hybrid", "perturbed"),
        "spin_up": _SPIN_UP,
    },
    "enkf-n": {
        "members": _MEMBERS,
        "capped": switch(),
        "form": choice("dual", "primal"),
        "rotate": switch(),
        "model_noise": _MODEL_NOISE,
    },
    "enks": {
        "members": _MEMBERS,
        "lag": count(1, 2, 3, least=1),
        "inflation": _INFLATION,
        "finite_size": _FALSE,
        "spin_up": _SPIN_UP,
        "model_noise": _MODEL_NOISE,
    },
    "es-mda": {
        "members": _MEMBERS,
        "lag": count(1, 2, 3, least=1),
        "steps": free(1, 2, [2.0, 2.0], wrong=(bool, complex, str, bytes, dict, set)),
        "update": choice("stochastic", "deterministic"),
        "inflation": _INFLATION,
        "spin_up": _SPIN_UP,
    },
    "ienkf": {**_ITERATIVE, "inflation": _INFLATION, "finite_size": _FALSE},
    "ienkf-n": _ITERATIVE,
    "ienks": {**_ITERATIVE, "lag": count(1, 2, 3, least=1), "inflation": _INFLATION, "finite_size": _FALSE},
    "ienks-n": {**_ITERATIVE, "lag": count(1, 2, 3, least=1)},
    "particle": {
        "members": count(5, 20, least=2),
        "noise": number(0.1, 0, 0.5, least=0),
        "threshold": number(0.5, 0, 1, least=0, most=1),
    },
    "optimal-particle": {
        "members": count(5, 20, least=2),
        "noise": number(0.1, 0.5, above=0),
        "threshold": number(0.5, 0, 1, least=0, most=1),
    },
}
_ENSEMBLES = {name for name, kinds in PARAMETERS.items() if "members" in kinds}
_TUNED = {
    "3d-var": "scale",
    "4d-var": "scale",
    "extended-kalman": "inflation",
    "state-covariance": "inflation",
    "enks": "lag",
}
_CYCLING = {
    **ROLES,
    "seed": SEED,
    "store": STORE,
    "mode": choice("w-", "w"),
    "device": DEVICE,
    "progress": PROGRESS,
}
_LORENZ96 = ("whole", "gaps", "alternate", "uneven", "correlated", "double", "single", "instant")
_CYCLED = frozenset(("observation", "time", "labels", "dynamics", "error", "follows", "innovations"))


def _run(function: Callable[..., Dataset], arguments: Numbers) -> Dataset:
    return function(**arguments).compute()


def _baseline(method: str) -> Verb:
    """A verb for each method, as each has parameters of its own."""
    records = {
        "kalman": ("linear",),
        **dict.fromkeys(
            ("ienkf", "ienkf-n", "ienks", "ienks-n", "enks", "es-mda"),
            ("whole", "gaps", "alternate", "uneven", "double"),
        ),
        "extended-kalman": (*_LORENZ96, "lorenz63", "linear", "operator", "slow"),
        "letkf": ("whole", "gaps", "alternate", "uneven", "double", "single", "instant"),
        **dict.fromkeys(  # with a radius errors are independent
            ("eakf", "ensrf", "rank-histogram"), ("whole", "gaps", "alternate", "uneven", "double", "single", "slow")
        ),
        "3d-var": (*_LORENZ96, "operator", "slow"),
        "4d-var": ("whole", "gaps", "double"),
        "eda": ("whole", "gaps", "double"),
    }
    ensemble = {"keep_members": switch()} if method in _ENSEMBLES else {}
    tune = {"tune_on": choice("innovation", "truth")}
    kinds = {"name": choice(method, also=list(METHODS)), **PARAMETERS[method], **ensemble, **tune, **_CYCLING}
    needs = ["ds", "name", *({"members"} & set(kinds)), *([_TUNED[method]] if method in _TUNED else [])]
    return Verb(
        f"baseline {method}",
        lambda **a: _run(xdan.baseline, a),
        {"ds": thing(of=Dataset), **kinds},
        check_baseline,
        needs=tuple(needs),
        records=records.get(method, (*_LORENZ96, "slow")),
        reads=_CYCLED - ({"innovations"} if method == "climatology" else set()),
        alone=True,
        draws=True,
        weight=1.5,
    )


def check_cycle(call: Call, run: Dataset) -> None:
    """Forecasts are NumPy's; analyses are the network's at zeta as NumPy projects the innovations."""
    net, made = call.plain["network"], call.source
    lost = arranged(run, "diverged").astype(bool)
    if lost.any():
        claim("every trajectory diverged without a word", call.warned or not lost.any(1).all())
        return
    finite("analysis", run["analysis"])
    if net.ensemble:
        if "members" in run:
            _check_members(run)
        return
    _check_forecast(call, run, "analysis", "forecast")
    if net.memory:
        return
    x, y = arranged(run, "forecast"), made.values("observation")
    analysis = forward(net, x, projected(y - x, made.error))
    close("analysis", arranged(run, "analysis")[:, 1:], analysis[:, 1:])  # the first is made from the climate


def projected(innovation: Array, r: Array) -> Array:
    """H^T R^-1 (y - x) where NaN stands for what is not observed, states (..., N)."""
    zeta = np.zeros_like(innovation)
    for place in np.ndindex(innovation.shape[:-1]):
        seen = np.isfinite(innovation[place])
        zeta[place][seen] = np.linalg.solve(r[np.ix_(seen, seen)], innovation[place][seen])
    return zeta


def forward(net: xdan.Network, x: Array, zeta: Array) -> Array:
    """Analyses of a network without memory in float64, states (..., N)."""
    with torch.no_grad():
        module = net.module(torch.float64)
        size = x.shape[-1]
        flat = (torch.from_numpy(np.ascontiguousarray(v).reshape(-1, size)) for v in (x, zeta))
        answer: Array = module(*flat)[0].numpy().reshape(x.shape)
        return answer


def _cycle(**arguments: Any) -> Dataset:
    if "network" in arguments:
        arguments["method"] = arguments.pop("network")
    return _run(xdan.cycle, arguments)


CYCLE = Verb(
    "cycle",
    _cycle,
    {"ds": thing(of=Dataset), "network": NETWORK, "members": _FALSE, **_CYCLING},
    check_cycle,
    needs=("ds", "network"),
    records=("whole", "gaps", "alternate", "uneven", "double", "single", "instant"),
    networks=tuple(NETWORKS),
    reads=_CYCLED | {"setting"},
    alone=True,
    draws=True,
    weight=4,
)


def check_train(call: Call, net: xdan.Network) -> None:
    """Weights are finite, and the network is described."""
    check_weights(call, net)
    claim("there is no history", net.history is not None and net.history.sizes["step"] > 0)
    json.dumps(net.description)


_RATES = tuple(entry.name for entry in fields(Optimiser))
_OF_TWIN = ("interval", "observe", "error_std")


def train(**words: Any) -> xdan.Network:
    """`xdan.train`, the parameters of its optimiser and of its twin experiment side by side with its own."""
    rates = {name: words.pop(name) for name in _RATES if name in words}
    twin = {name: words.pop(name) for name in _OF_TWIN if name in words}
    if rates:
        words["optimiser"] = Optimiser(**rates)
    if isinstance(words.get("source"), xdan.Dynamics):
        words["source"] = TwinExperiment(words["source"], **twin)
    return xdan.train(**words)


_TRAINING = {
    "network": free(
        *(Fresh(lambda _, name=name: NETWORKS[name]()) for name in ("cnn", "memory", "linear-in-zeta")),
        wrong=(bool, int, float, complex, bytes, list, dict, set, slice, np.ndarray, DataTree),
    ),
    "objective": choice("rmse", "mse", also=("crps", "energy", "forecast", "analysis", "covariance")),
    "window": count(1, 2, 3, least=1, work=True),
    "batch": count(1, 2, least=1),
    "steps": count(1, 2, least=1, work=True),
    "learning_rate": number(0.01, 0.1, above=0),
    "adam_learning_rate": number(2e-3, 0.01, above=0),
    "weight_decay": number(0.0, 0.1, least=0),
    "clip": number(2.0, 1, above=0),
    "validation": number(0.4, 0.5, above=0, below=1),
    "validate_every": count(1, 2, 250, least=1),
    "seed": SEED,
    "device": DEVICE,
    "processes": count(1, least=1, optional=True),
    "progress": PROGRESS,
    "checkpoint": STORE,
}
_TRAINED = ("source", "network", "steps", "batch", "window", "validation", "processes")
TRAIN = Verb(
    "train",
    train,
    {"source": thing(of=(Dataset, xdan.Dynamics)), **_TRAINING, **ROLES},
    check_train,
    needs=_TRAINED,
    records=("whole", "gaps", "alternate", "double"),
    reads=frozenset(("observation", "truth", "time", "labels", "dynamics", "error", "follows")),
    draws=True,
    weight=3,
    record="source",
)
TRAIN_ENDLESS = Verb(
    "train, endless twin",
    train,
    {
        "source": thing(MODELS["lorenz96"].dynamics, of=(Dataset, xdan.Dynamics)),
        **_TRAINING,
        "interval": number(0.05, 0.1, above=0, work=True),
        "observe": SITES_OBSERVED,
        "error_std": number(1.0, 0.5, 2, above=0, optional=True),
        "trajectories": count(4, 6, least=1, work=True),
    },
    check_train,
    needs=_TRAINED,
    weight=1.5,
)


def sweep(experiment: Any, **words: Any) -> Dataset:
    """`xdan.sweep`, the parameters of its twin experiment side by side with its own."""
    twin = {name: words.pop(name) for name in _OF_TWIN if name in words}
    return xdan.sweep(TwinExperiment(experiment, **twin), **words).compute()


def check_sweep(call: Call, scores: Dataset) -> None:
    """No cell fails, and the RMSE of the scheme is a number."""
    claim("a cell failed without a word", call.warned or not scores["failed"].any())
    if not scores["failed"].any() and not scores["diverged"].any():
        finite("rmse", scores["rmse"])
        claim("an RMSE is no size of an error", ((scores["rmse"] > 0) & (scores["rmse"] < 10)).all())


SWEEP = Verb(
    "sweep",
    sweep,
    {
        "experiment": thing(MODELS["lorenz96"].dynamics, of=xdan.Dynamics),
        "schemes": free(
            {"E": {"baseline": "etkf", "members": 3}},
            {"C": {"baseline": "climatology"}},
            {"net": {"network": "residual-cnn", "filters": 2, "blocks": 1, "steps": 1, "batch": 2, "window": 1}},
            wrong=(bool, int, float, complex, str, bytes, set, slice, np.ndarray),
        ),
        "axes": free(None, {"interval": [0.05, 0.1]}, {"forcing": [8.0]}, wrong=(bool, float, complex, str, bytes)),
        "seeds": free(1, 2, [3], wrong=(bool, float, complex, str, bytes, slice)),
        "interval": number(0.05, 0.1, above=0, work=True),
        "observe": SITES_OBSERVED,
        "error_std": number(1.0, 0.5, above=0, optional=True),
        "cycles": count(3, 5, least=1, work=True),
        "trajectories": count(1, 2, least=1, work=True),
        "burn_in": count(0, 1, least=0),
        "store": STORE,
        "retry": switch(),
        "yes": switch(),
        "progress": PROGRESS,
    },
    check_sweep,
    needs=("experiment", "schemes", "cycles", "trajectories", "burn_in"),
    weight=1.5,
)


# Scores.


def _averaged(call: Call) -> tuple[int, ...]:
    dim = call.get("dim", ("trajectory", "time"))
    names = (dim,) if isinstance(dim, str) else dim
    return tuple(("trajectory", "time").index(name) for name in names)


def fair_crps(members: Array, truth: Array) -> Array:
    """CRPS of members (..., M, N) by its unbiased formula: E|x - y| - E|x - x'| / 2, shape (..., N)."""
    m = members.shape[-2]
    apart = np.abs(members[..., :, None, :] - members[..., None, :, :]).sum((-3, -2))
    return np.asarray(np.abs(members - truth[..., None, :]).mean(-2) - apart / (2 * m * (m - 1)))


def gaussian_crps(error: Array, spread: Array) -> Array:
    """CRPS of a Gaussian; the absolute error where it has no width."""
    wide = np.where(spread > 0, spread, 1.0)
    z = error / wide
    density, share = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), scipy.special.erf(z / math.sqrt(2))
    return np.where(spread > 0, wide * (z * share + 2 * density - 1 / math.sqrt(math.pi)), np.abs(error))


def _crps(part: Mapping[str, Array], x: Array) -> Array:
    """CRPS of what a run holds: members, else a Gaussian."""
    if "members" in part:
        return fair_crps(part["members"], x)
    return gaussian_crps(part["analysis"] - x, part["spread"])


_MEMBERS_OF = ["members", "forecast_members"]
_FORMS: tuple[Callable[[Dataset], Dataset], ...] = (
    lambda run: run,
    lambda run: run.drop_vars(_MEMBERS_OF),
    lambda run: run.drop_vars([*_MEMBERS_OF, "spread", "forecast_spread"]),
    lambda run: run.drop_vars(_MEMBERS_OF).assign(spread=0 * run["spread"]),
)


def check_score(call: Call, scores: Dataset) -> None:
    """RMSE, spread, CRPS and statistics of innovations, by their formulas."""
    run, burn_in, axes = call.plain["run"], call.get("burn_in", 0), _averaged(call)
    x, y = call.source.values("truth", burn_in), call.source.values("observation", burn_in)
    names = ("forecast", "analysis", "spread", "forecast_spread", "members")
    part = {name: arranged(run, name)[:, burn_in:] for name in names if name in run}
    for name, of in (("rmse", "analysis"), ("forecast_rmse", "forecast")):
        close(name, scores[name], np.sqrt(((part[of] - x) ** 2).mean(-1)).mean(axes))
    for name in {"spread", "forecast_spread"} & set(part):
        close(name, scores[name], np.sqrt((part[name] ** 2).mean(-1)).mean(axes))
    close("mean_absolute_error", scores["mean_absolute_error"], np.abs(part["analysis"] - x).mean(-1).mean(axes))
    if ("crps" in scores) != ("members" in part or "spread" in part):
        raise Mismatch("a run has a CRPS where it has members or a spread, and not elsewhere")
    if "crps" in scores:
        close("crps", scores["crps"], _crps(part, x).mean(-1).mean(axes))
    seen, both = np.isfinite(y), (*axes, 2)

    def average(value: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(seen, value, 0.0).sum(both) / seen.sum(both))

    d, residual = y - part["forecast"], y - part["analysis"]
    expected = {
        "innovation_mean": average(d),
        "innovation_variance": average(d**2) - average(d) ** 2,
        "residual_mean": average(residual),
        "residual_variance": average(residual**2) - average(residual) ** 2,
        "error_variance_diagnosed": average(d * residual),
        "forecast_variance_diagnosed": average((d - residual) * d),
    }
    if "forecast_spread" in part:
        expected["innovation_variance_expected"] = average(part["forecast_spread"] ** 2 + np.diag(call.source.error))
        expected["forecast_variance"] = average(part["forecast_spread"] ** 2)
        expected["consistency"] = expected["innovation_variance"] / expected["innovation_variance_expected"]
    for name, value in expected.items():
        if name in scores:
            close(name, scores[name], value, 5e-3, 5e-3)


_SCORED = ("whole", "gaps", "alternate", "uneven", "correlated", "double", "single", "lorenz63", "linear")
_DIMS = Kind(
    ("trajectory", "time", ("trajectory", "time"), ["time"]),
    lambda v: (
        v in ("trajectory", "time")
        if isinstance(v, str)
        else (None if isinstance(v, (list, tuple, set)) and v else (None if isinstance(v, (list, tuple)) else False))
    ),
)
SCORE = Verb(
    "score",
    lambda **a: xdan.score(**a).compute(),
    {"ds": thing(of=Dataset), "run": RUN, "dim": _DIMS, "burn_in": BURN_IN, **ROLES},
    check_score,
    needs=("ds", "run"),
    records=_SCORED,
    run="etkf",
    reads=_CYCLED - {"innovations"} | {"truth", "truth whole", "run", "analysis", "run values"},
    weight=6,
    forms=_FORMS,
)


def check_ranks(call: Call, counts: DataArray) -> None:
    """Ranks of the truth, counted."""
    burn_in, axes = call.get("burn_in", 0), _averaged(call)
    x = call.source.values("truth", burn_in)
    members = arranged(call.plain["run"], call.get("of", "members"))[:, burn_in:]
    rank = 1 + (members < x[:, :, None]).sum(2)
    both = (*axes, 2)
    expected = np.stack([(rank == r).sum(both) for r in range(1, members.shape[2] + 2)], -1)
    close("counts", counts.transpose(..., "rank"), expected, 0, 0.5)


RANKS = Verb(
    "rank_histogram",
    lambda **a: xdan.rank_histogram(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "run": RUN,
        "dim": _DIMS,
        "burn_in": BURN_IN,
        "of": choice("members", "forecast_members"),
        **ROLES,
    },
    check_ranks,
    needs=("ds", "run"),
    records=("whole", "gaps", "double", "lorenz63"),
    run="etkf",
    reads=frozenset(("truth", "labels", "dynamics", "run", "analysis")),
    weight=2,
)


# What a network has learned.


def _states(call: Call) -> Array:
    """States that derivatives are taken at, (trajectory, time, N)."""
    run, start, step = call.get("run"), call.get("burn_in", 0), call.get("every", 1)
    x = call.source.values("truth") if run is None else arranged(run, "forecast")
    return x[:, start::step]


def jacobian(net: xdan.Network, x: Array, zeta: Array, h: float = 1e-5) -> Array:
    """P_a by central differences, states (..., N) to (..., N, N)."""
    columns = [(forward(net, x, zeta + h * e) - forward(net, x, zeta - h * e)) / (2 * h) for e in np.eye(x.shape[-1])]
    return np.stack(columns, -1)


def gamma(net: xdan.Network, x: Array, h: float = 1e-3) -> Array:
    """Marginal gain by differences of differences, states (..., N) to (..., N, N, N)."""
    zero = np.zeros_like(x)
    slices = [
        (jacobian(net, x + h * e, zero, h) - jacobian(net, x - h * e, zero, h)) / (2 * h) for e in np.eye(x.shape[-1])
    ]
    return np.stack(slices, -1)


def check_gain(call: Call, gain: DataArray) -> None:
    """Derivatives at zeta = 0, by finite differences."""
    net, kind = call.plain["network"], call.get("kind", "mean")
    if call.get("innovation", "zero") != "zero" or net.memory or net.ensemble:
        return finite("gain", gain)
    if call.get("method", "autodiff") == "regression" and not (
        net.description["name"] == "linear-in-zeta" and kind == "covariance"
    ):
        return finite("gain", gain)
    x = _states(call)
    dim = call.get("dim", ("trajectory", "time") if kind == "mean" else ())
    axes = tuple(("trajectory", "time").index(name) for name in ((dim,) if isinstance(dim, str) else dim))
    lead = [name for k, name in enumerate(("trajectory", "time")) if k not in axes]
    if call.record == "single" and "trajectory" in lead:
        lead.remove("trajectory")
        gain = gain.expand_dims("trajectory")
        lead.insert(0, "trajectory")
    if kind in ("covariance", "kalman"):
        expected = jacobian(net, x, np.zeros_like(x))
        if kind == "kalman":
            y = call.source.values("observation")[:, call.get("burn_in", 0) :: call.get("every", 1)]
            seen, inverse = np.isfinite(y), np.linalg.inv(call.source.error)
            expected = expected @ (inverse * seen[..., None, :])
        order = [*lead, "i", "j"]
    else:
        expected = gamma(net, x)
        order = [*lead, "i", "j", "l"]
        if kind == "mean":
            expected = _symmetry_average(call, gain, expected)
            order = [*lead, "i", "j"]
    scale = max(1e-3, float(np.abs(expected).max()))
    close("gain", gain.transpose(*order), expected.mean(axes), 2e-3, 2e-3 * scale)
    return None


def _symmetry_average(call: Call, gain: DataArray, derivative: Array) -> Array:
    """Omega_r[i, j] = mean over shifts s of Gamma[i + s, j + s, r + s]; the identity alone unless all sites are."""
    r, size = int(gain.attrs["reference"]), derivative.shape[-1]
    step = 2 if call.record == "alternate" else 1
    shifts = range(0, size, step) if call.get("all_sites", False) else [0]
    turned = [np.roll(derivative[..., (r + s) % size], (-s, -s), (-2, -1)) for s in shifts]
    return np.asarray(np.mean(turned, 0))


_LEARNED = frozenset(("truth", "truth whole", "labels", "dynamics", "error"))
_LOOKING = {"every": EVERY, "burn_in": BURN_IN, "device": DEVICE, **ROLES}
GAIN = Verb(
    "gain",
    lambda **a: xdan.gain(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "network": NETWORK,
        "kind": choice("mean", "marginal", "covariance", "kalman"),
        "method": choice("autodiff", also=("regression",)),
        "dim": Kind((None,), lambda v: True if v is None else _DIMS.judge(v)),
        "innovation": choice("zero", "sampled", also=("run",)),
        "reference": count(None, least=0, most=7, optional=True),
        "all_sites": Kind((None,), lambda v: v is None or _is_bool(v)),
        "samples": count(None, least=9, optional=True, work=True),
        "forecast_error": free(None, wrong=(bool, complex, str, bytes, set, slice)),
        "group": thing(None, of=xdan.Group, optional=True),
        "seed": SEED,
        **_LOOKING,
    },
    check_gain,
    needs=("ds", "network"),
    records=("whole", "alternate", "uneven", "double", "single"),
    networks=("cnn", "memory", "linear-in-zeta"),
    reads=_LEARNED,
    weight=5,
)


REGRESSION = replace(
    GAIN,
    name="gain by regression",
    kinds={
        **GAIN.kinds,
        "method": choice("regression", also=("autodiff",)),
        "samples": count(12, 40, least=9, work=True),
        "innovation": choice("zero", also=("sampled", "run")),
    },
    needs=("ds", "network", "method", "samples"),
    weight=1.5,
)


def check_group(call: Call, group: xdan.Group) -> None:
    """How many turns leave an experiment on the ring as it is."""
    expected = {"whole": 8, "double": 8, "alternate": 4, "uneven": 1, "lorenz63": 1, "single": 8}
    if call.record in expected:
        claim(
            f"the group has {len(group)} elements, expected {expected[call.record]}",
            len(group) == expected[call.record],
        )


GROUP = Verb(
    "symmetry_group",
    xdan.symmetry_group,
    {"ds": thing(of=Dataset), **{k: v for k, v in ROLES.items() if k != "truth"}},
    check_group,
    needs=("ds",),
    records=("whole", "double", "alternate", "uneven", "correlated", "lorenz63", "single"),
    reads=frozenset(("labels", "dynamics", "error")),
    weight=1.5,
)


def check_equivariance(call: Call, error: DataArray) -> None:
    """A circular network commutes with the ring."""
    close("error", error, np.zeros(error.shape), 0, 5e-3)


EQUIVARIANCE = Verb(
    "equivariance_error",
    lambda **a: xdan.equivariance_error(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "network": NETWORK,
        "elements": count(3, 16, least=1),
        "innovation": choice("zero", "sampled", also=("run",)),
        "group": thing(None, of=xdan.Group, optional=True),
        "seed": SEED,
        **_LOOKING,
    },
    check_equivariance,
    needs=("ds", "network"),
    records=("whole", "double", "alternate"),
    networks=("cnn", "memory"),
    reads=_LEARNED,
    weight=1.5,
)


def check_bias(call: Call, result: Dataset) -> None:
    """Increments at zeta = 0."""
    net = call.plain["network"]
    if net.memory:
        return finite("bias", result["bias"])
    x = _states(call)
    expected = np.sqrt(((forward(net, x, np.zeros_like(x)) - x) ** 2).mean(-1))
    value = result["bias"]
    close("bias", value if "trajectory" in value.dims else value.expand_dims("trajectory"), expected)
    close("mean", result["mean"], expected.mean())
    return None


BIAS = Verb(
    "zero_innovation_bias",
    lambda **a: xdan.zero_innovation_bias(**a).compute(),
    {"ds": thing(of=Dataset), "network": NETWORK, **_LOOKING},
    check_bias,
    needs=("ds", "network"),
    records=("whole", "gaps", "double", "single"),
    networks=("cnn", "memory", "linear-in-zeta"),
    reads=_LEARNED,
    weight=1.5,
)


def check_scaling(call: Call, result: Dataset) -> None:
    """r(lambda) is lambda for a network that is linear in zeta."""
    ratio, scales = result["ratio"], np.atleast_1d(call.plain["scales"]).astype(np.float64)
    if call.plain["network"].description["name"] == "linear-in-zeta":
        close("ratio", ratio, np.broadcast_to(scales, ratio.shape), 1e-6, 1e-6)
    else:
        finite("ratio", ratio)


SCALING = Verb(
    "scaling_of_increments",
    lambda **a: xdan.scaling_of_increments(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "network": NETWORK,
        "run": RUN,
        "scales": free([0.5, 1.0, 2.0], [1], np.array([0.1, 3.0]), wrong=(bool, complex, str, bytes, set, slice, dict)),
        "dim": _DIMS,
        "method": choice("autodiff", also=("regression",)),
        "samples": count(None, least=9, optional=True, work=True),
        "cutoff": number(None, 1e-6, least=0, below=1, optional=True),
        **_LOOKING,
    },
    check_scaling,
    needs=("ds", "network", "run", "scales"),
    records=("whole", "alternate"),
    networks=("cnn", "linear-in-zeta"),
    run="network",
    reads=frozenset(("observation", "labels", "dynamics", "error", "run")),
    weight=1.5,
)


def check_stein(call: Call, result: Dataset) -> None:
    """Both sides are P_a for a network that is linear in zeta."""
    for name in ("mean_gradient", "regression"):
        finite(name, result[name])
    if call.plain["network"].description["name"] == "linear-in-zeta" and call.record == "whole":
        x = _states(call)
        expected = jacobian(call.plain["network"], x, np.zeros_like(x)).mean((0, 1))
        for name in ("mean_gradient", "regression"):
            close(name, result[name], expected, 1e-4, 1e-4)


STEIN = Verb(
    "stein_identity",
    lambda **a: xdan.stein_identity(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "network": NETWORK,
        "samples": count(12, 20, least=10, work=True),
        "forecast_error": free(None, 0.5, wrong=(bool, complex, str, bytes, set, slice)),
        "seed": SEED,
        **_LOOKING,
    },
    check_stein,
    needs=("ds", "network", "samples"),
    records=("whole", "alternate"),
    networks=("cnn", "linear-in-zeta"),
    reads=_LEARNED,
)


def check_histogram(call: Call, density: DataArray) -> None:
    """Projected innovations counted by NumPy."""
    run, burn_in = call.plain["run"], call.get("burn_in", 0)
    y, x = call.source.values("observation", burn_in), arranged(run, "forecast")[:, burn_in:]
    zeta = projected(y - x, call.source.error)
    seen = zeta[zeta != 0]
    width = density["width"].values
    edges = np.concatenate([density["zeta"].values - width / 2, density["zeta"].values[-1:] + width[-1:] / 2])
    margin = np.abs(seen[:, None] - edges).min() > 1e-4  # rounding moves no sample across an edge
    if margin:
        close("density", density, np.histogram(seen, edges)[0] / len(seen) / width, 1e-3, 1e-3)
    if not isinstance(call.get("bins", 80), int):
        close("edges", edges, call.plain["bins"], 1e-6, 1e-6)


HISTOGRAM = Verb(
    "innovation_histogram",
    lambda **a: xdan.innovation_histogram(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "network": NETWORK,
        "run": RUN,
        "bins": free(10, 80, [-2.0, -0.5, 0.5, 2.0], wrong=(bool, complex, str, bytes, slice, float)),
        "limit": number(None, 3.0, 5, above=0, optional=True),
        "burn_in": BURN_IN,
        **ROLES,
    },
    check_histogram,
    needs=("ds", "network", "run"),
    records=("whole", "gaps", "alternate", "uneven"),
    networks=("cnn",),
    run="network",
    reads=frozenset(("observation", "labels", "dynamics", "error", "run")),
    weight=1.5,
)


# Lyapunov vectors, covariances.


def check_vectors(call: Call, result: Dataset) -> None:
    """Backward vectors are orthonormal, covariant ones of length 1."""
    names = ("trajectory", "time") if "trajectory" in result.dims else ("time",)
    vectors = result["lyapunov_vector"].transpose(*names, "vector", ...).values
    product = vectors @ np.swapaxes(vectors, -1, -2)
    size = vectors.shape[-2]
    if call.get("kind", "backward") == "backward":
        close("products of vectors", product, np.broadcast_to(np.eye(size), product.shape), 1e-6, 1e-6)
    else:
        close("lengths", np.diagonal(product, axis1=-2, axis2=-1), np.ones(product.shape[:-1]), 1e-6, 1e-6)
    finite("growth", result["growth"])


VECTORS = Verb(
    "lyapunov_vectors",
    lambda **a: xdan.lyapunov_vectors(**a).compute(),
    {
        "ds": thing(of=Dataset),
        "kind": choice("backward", "covariant"),
        "vectors": count(None, 1, 2, 3, least=1, optional=True),
        "spin_up": count(2, 3, least=1, optional=True),
        "interval": number(None, 0.1, above=0, optional=True),
        "seed": SEED,
        "dynamics": DYNAMICS,
        "truth": VARIABLE,
    },
    check_vectors,
    needs=("ds", "spin_up"),
    records=("whole", "double", "lorenz63", "single", "linear"),
    reads=frozenset(("truth", "truth whole", "time", "labels", "dynamics")),
    weight=1.5,
)


def check_exponents(call: Call, result: Dataset) -> None:
    """Exponents of the linear model from its eigenvalues; else their sum from the divergence of the flow."""
    exponents, model = result["exponent"].values, call.plain["dynamics"]
    finite("exponents", exponents)
    if len(exponents) < math.prod(model.shape):
        return
    divergence = {8: -8.0, 3: -(10.0 + 1.0 + 8.0 / 3.0)}
    if model is MODELS["linear"].dynamics:
        eigenvalues = np.abs(np.linalg.eigvals(MATRIX))
        close("sum of exponents", exponents.sum(), np.log(eigenvalues).sum() / 0.1, 1e-6, 1e-6)
    else:
        close("sum of exponents", exponents.sum(), divergence[len(exponents)], 1e-2, 1e-2)


EXPONENTS = Verb(
    "lyapunov_spectrum",
    xdan.lyapunov_spectrum,
    {
        "dynamics": thing(*(m.dynamics for m in MODELS.values()), of=xdan.Dynamics),
        "vectors": count(None, 1, 3, least=1, optional=True),
        "time": number(5.0, 2, above=0, work=True),
        "spin_up": number(1.0, 2, least=0, optional=True, work=True),
        "interval": number(None, 0.5, 0.1, above=0, optional=True, work=True),
        "trajectories": count(1, 2, least=1, work=True),
        "seed": SEED,
    },
    check_exponents,
    needs=("dynamics", "time", "spin_up", "trajectories"),
)


def check_covariance(call: Call, result: DataArray) -> None:
    """NumPy's covariance of the members."""
    members = arranged(call.plain["run"], call.get("of", "members"))
    expected = np.stack([[np.cov(m.T) for m in row] for row in members])
    if "trajectory" not in result.dims:
        result = result.expand_dims("trajectory")
    close("covariance", result.transpose("trajectory", "time", "i", "j"), expected)


@lru_cache
def covariance(size: int, asymmetric: float = 0.0) -> DataArray:
    """Covariances of some states."""
    draw = np.random.default_rng(size)
    roots = draw.standard_normal((2, 3, size, size))
    values = roots @ np.swapaxes(roots, -1, -2) + asymmetric * draw.standard_normal((2, 3, size, size))
    labels = {"trajectory": [0, 1], "time": [0.0, 0.1, 0.2], "i": range(size), "j": range(size)}
    return DataArray(values, labels, ("trajectory", "time", "i", "j"), "covariance", {"units": "1"})


def check_spectrum(call: Call, result: Dataset) -> None:
    """Eigenvalues of the symmetric part."""
    p = call.plain["covariance"].transpose(..., "i", "j").values.astype(np.float64)
    close(
        "eigenvalues",
        result["eigenvalue"].transpose(..., "mode"),
        np.linalg.eigvalsh(p + np.swapaxes(p, -1, -2))[..., ::-1] / 2,
    )


def check_angles(call: Call, result: DataArray) -> None:
    """SciPy's angles between leading eigenvectors."""
    modes = (call.plain["modes"], call.get("other_modes", call.plain["modes"]))
    spans = []
    for name, size in zip(("one", "other"), modes, strict=True):
        p = call.plain[name].transpose(..., "i", "j").values
        spans.append(np.linalg.eigh((p + np.swapaxes(p, -1, -2)) / 2)[1][..., ::-1][..., :size])
    values = result.transpose("trajectory", "time", "angle").values
    for place in np.ndindex(values.shape[:2]):
        expected = np.degrees(np.sort(scipy.linalg.subspace_angles(spans[0][place], spans[1][place])))
        close("angles", values[place], expected, 1e-3, 1e-3)


_COVARIANCES = thing(Fresh(lambda _: covariance(4)), Fresh(lambda _: covariance(4, 0.1)), of=DataArray)
COVARIANCES = [
    Verb(
        "ensemble_covariance",
        lambda **a: xdan.ensemble_covariance(**a).compute(),
        {"run": RUN, "of": choice("members", "forecast_members")},
        check_covariance,
        needs=("run",),
        records=("whole", "double", "lorenz63"),
        run="etkf",
    ),
    Verb(
        "covariance_spectrum",
        lambda **a: xdan.covariance_spectrum(**a).compute(),
        {"covariance": _COVARIANCES},
        check_spectrum,
        needs=("covariance",),
    ),
    Verb(
        "principal_angles",
        lambda **a: xdan.principal_angles(**a).compute(),
        {
            "one": _COVARIANCES,
            "other": _COVARIANCES,
            "modes": count(1, 2, 3, least=1),
            "other_modes": count(None, 1, 2, least=1, optional=True),
        },
        check_angles,
        needs=("one", "other", "modes"),
    ),
]


# Networks and symmetry averages.


def check_committee(call: Call, net: xdan.Network) -> None:
    """The analysis is the mean of the members' analyses."""
    x = source("whole").values("truth")
    zeta = np.asarray(np.random.default_rng(0).standard_normal(x.shape))
    if not net.memory and not net.ensemble:
        expected = np.mean([forward(one, x, zeta) for one in call.plain["networks"]], 0)
        close("analysis", forward(net, x, zeta), expected, 1e-5, 1e-5)


def _round_trip(network: xdan.Network, **arguments: Any) -> xdan.Network:
    network.to_zarr(**arguments)
    return xdan.open_network(arguments["store"])


def check_same_network(call: Call, net: xdan.Network) -> None:
    """Every array comes back as it was."""
    for name, value in call.plain["network"].arrays.items():
        claim(f"{name} came back changed", np.array_equal(net.arrays[name], value))


def check_weights(call: Call, net: xdan.Network) -> None:
    """Every array is finite."""
    for name, value in net.arrays.items():
        finite(name, value)


def check_reconstruction(call: Call, result: DataArray) -> None:
    """Gamma[i, j, l] = Omega_r[i - l + r, j - l + r] on the ring."""
    average = omega()
    r, values = int(average.attrs["reference"]), average.transpose("i", "j").values
    i, j, k = np.ogrid[:8, :8, :8]
    close("gain", result.transpose("i", "j", "l"), values[(i - k + r) % 8, (j - k + r) % 8], 1e-5, 1e-7)


def check_extent(call: Call, result: Dataset) -> None:
    """Masses by distance sum up to one, and the radius holds the share."""
    average, share = omega().transpose("i", "j"), call.get("share", 0.95)
    r = int(average.attrs["reference"])
    away = np.minimum(np.abs(np.arange(8) - r), 8 - np.abs(np.arange(8) - r))
    pair, mass = np.maximum.outer(away, away), np.abs(average.values) / np.abs(average.values).sum()
    expected = np.array([mass[pair == d].sum() for d in result["distance"].values])
    close("mass", result["mass"], expected, 1e-4, 1e-6)
    close("radius", result["radius"], result["distance"].values[np.argmax(np.cumsum(expected) >= share)])


def check_law(call: Call, result: Dataset) -> None:
    """A law that the cells follow exactly is fitted to a thousandth."""
    close("fitted", result["fitted"], result["observed"], 1e-2, 1e-2)
    close("observed", result["observed"], cube()["rmse"].values[0, ..., 0])


LEARNED = [
    Verb(
        "committee",
        xdan.committee,
        {
            "networks": free(
                Fresh(lambda _: [network("cnn"), network("cnn")]),
                Fresh(lambda _: (network("cnn"), network("linear-in-zeta"))),
                wrong=(bool, int, float, complex, str, bytes, slice, np.ndarray, DataTree, type(None)),
            )
        },
        check_committee,
        needs=("networks",),
    ),
    Verb(
        "Network.to_zarr",
        _round_trip,
        {
            "store": Kind(
                (Fresh(lambda folder: folder / "net.zarr"), Fresh(lambda _: zarr.storage.MemoryStore())), STORE.judge
            ),
            "mode": choice("w-", "w"),
        },
        check_same_network,
        needs=("store",),
        networks=tuple(NETWORKS),
        weight=1.5,
    ),
    Verb(
        "open_network",
        xdan.open_network,
        {"store": Kind(("lorenz96", "lorenz96-memory"), lambda v: None if isinstance(v, dict) else False)},
        check_weights,
        needs=("store",),
    ),
    Verb(
        "reconstruct_gain",
        lambda average, **a: xdan.reconstruct_gain(average, **a).compute(),
        {"average": thing(Fresh(lambda _: omega()), of=DataArray), "group": thing(xdan.Group.ring(8), of=xdan.Group)},
        check_reconstruction,
        needs=("average", "group"),
    ),
    Verb(
        "pattern_extent",
        xdan.pattern_extent,
        {
            "omega": thing(Fresh(lambda _: omega()), of=DataArray),
            "share": number(0.95, 0.5, above=0, below=1),
            "dynamics": DYNAMICS,
        },
        check_extent,
        needs=("omega",),
    ),
    Verb(
        "scaling_law",
        xdan.scaling_law,
        {
            "cube": thing(Fresh(lambda _: cube()), Fresh(lambda _: cube()["rmse"]), of=(Dataset, DataArray)),
            "size": choice("trajectories"),
            "batch": choice("batch"),
            "value": choice("rmse"),
            "bootstrap": count(0, 3, least=0, work=True),
            "seed": SEED,
        },
        check_law,
        needs=("cube", "bootstrap"),
    ),
]


# Pictures.


def rendered(figure: Any) -> Any:
    """Draw a picture as bokeh would, and give it back."""
    import holoviews as hv
    import panel as pn

    if isinstance(figure, pn.viewable.Viewable):
        figure.get_root()
    else:
        hv.render(figure, backend="bokeh")
    return figure


def check_drawn(call: Call, figure: Any) -> None:
    """A picture was made."""
    claim("there is no picture", figure is not None)


def check_curves(call: Call, figure: Any) -> None:
    """The curve is the RMSE at each time."""
    made = call.source
    error = arranged(call.plain["runs"]["etkf"], "analysis") - made.values("truth")
    expected = np.sqrt((error**2).mean(-1)).mean(0)[call.get("cycles", slice(None))]
    (curve,) = figure.values()
    close("curve", curve.dframe().iloc[:, -1], expected)


_SLICE = Kind((None, slice(0, 5), slice(-3, None)), lambda v: None if v is None or isinstance(v, slice) else False)
_PICTURED = ("whole", "gaps", "double", "single")


def _mapping(make: Callable[[], Any]) -> Kind:
    return free(Fresh(lambda _: make()), wrong=(bool, int, float, complex, str, bytes, set, slice, type(None)))


PICTURES = [
    Verb(
        "hovmoller",
        lambda **a: rendered(xdan.hovmoller(**a)),
        {
            "ds": thing(of=Dataset),
            "run": RUN,
            "trajectory": count(0, least=-3, most=2),
            "cycles": _SLICE,
            "title": Kind(("", "EnKF"), lambda v: isinstance(v, str)),
            **ROLES,
        },
        check_drawn,
        needs=("ds", "run"),
        records=(*_PICTURED, "lorenz63"),
        run="etkf",
        reads=frozenset(("truth", "labels", "dynamics", "run", "analysis")),
    ),
    Verb(
        "rmse_in_time",
        lambda **a: rendered(xdan.rmse_in_time(**a)),
        {
            "ds": thing(of=Dataset),
            "runs": free(wrong=(bool, int, float, complex, str, bytes, set, slice, Dataset, type(None))),
            "cycles": _SLICE,
            "log": switch(),
            **ROLES,
        },
        check_curves,
        needs=("ds", "runs"),
        records=_PICTURED,
        run="etkf",
        reads=frozenset(("truth", "labels", "dynamics")),
    ),
    Verb(
        "gain_map",
        lambda **a: rendered(xdan.gain_map(**a)),
        {
            "averages": _mapping(omega),
            "together": switch(),
            "within": count(15, 2, None, least=1, optional=True),
            "columns": count(1, 2, least=1),
        },
        check_drawn,
        needs=("averages",),
        weight=0.6,
    ),
    Verb(
        "spectrum_curves",
        lambda **a: rendered(xdan.spectrum_curves(**a)),
        {"spectra": _mapping(lambda: {"P": xdan.covariance_spectrum(covariance(4))})},
        check_drawn,
        needs=("spectra",),
        weight=0.4,
    ),
    Verb(
        "angle_curves",
        lambda **a: rendered(xdan.angle_curves(**a)),
        {"angles": _mapping(lambda: {"a": xdan.principal_angles(covariance(4), covariance(4, 0.1), modes=2)})},
        check_drawn,
        needs=("angles",),
        weight=0.4,
    ),
    Verb(
        "training_history",
        lambda **a: rendered(xdan.training_history(**a)),
        {"histories": _mapping(lambda: network("cnn").history)},
        check_drawn,
        needs=("histories",),
        weight=0.4,
    ),
    Verb(
        "sweep_curves",
        lambda **a: rendered(xdan.sweep_curves(**a)),
        {
            "cube": thing(Fresh(lambda _: cube().isel(batch=[0])), of=Dataset),
            "along": choice("trajectories"),
            "value": choice("rmse"),
            "logx": switch(),
            "logy": switch(),
        },
        check_drawn,
        needs=("cube", "along"),
        weight=0.6,
    ),
    Verb(
        "explore",
        lambda **a: rendered(xdan.explore(**a)),
        {
            "source": thing(of=Dataset),
            "runs": free(wrong=(bool, int, float, complex, str, bytes, set, slice)),
            "gains": free(None, Fresh(lambda _: omega()), wrong=(bool, int, float, complex, str, bytes, set, slice)),
            **ROLES,
        },
        check_drawn,
        needs=("source", "runs"),
        records=("whole", "single"),
        run="etkf",
        weight=0.6,
        record="source",
    ),
]


def _all_verbs() -> Iterable[Verb]:
    yield from (TWIN, *CONSTRUCTORS, CYCLE, *(_baseline(method) for method in PARAMETERS))
    yield from (TRAIN, TRAIN_ENDLESS, SWEEP, SCORE, RANKS, GAIN, REGRESSION, GROUP, EQUIVARIANCE, BIAS)
    yield from (SCALING, STEIN, HISTOGRAM, VECTORS, EXPONENTS, *COVARIANCES, *LEARNED, *PICTURES)


VERBS = {verb.name: verb for verb in _all_verbs()}


_REFUSED = {"finite_size", "lag", "inflation"}  # that a subclass names and does not take


def unlisted() -> list[str]:
    """Registered methods and parameters that the tables above leave out."""
    gone = sorted(set(METHODS) - set(PARAMETERS))
    for method, kinds in PARAMETERS.items():
        refused = _REFUSED if method.startswith("ienk") else set()
        gone += [f"{method} {name}=" for name in sorted(accepted_parameters(method) - set(kinds) - refused)]
    return gone
