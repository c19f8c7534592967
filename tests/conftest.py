"""Small twins and a small network, shared by all tests; scheduler and threads that keep to one core."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, settings

import xdan
from xdan.core.dynamics import base

torch.set_num_threads(1)
# Examples share the session's fixtures, which they never change; the first ones pay for imports.
settings.register_profile(
    "xdan", deadline=None, max_examples=10, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("xdan")


# Shells start what runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def synchronous():
    """One core, and errors with their own traceback."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module", autouse=True)
def small_validation():
    """Endless twins are validated on 4 trajectories of 60 cycles, in place of 64 of 250.

    Other processes validate as users do. Modules that compare with them override this fixture.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("xdan.training.twin_source.VALIDATION_CYCLES", 60)
        patched.setattr("xdan.training.twin_source.VALIDATION_LANES", 4)
        yield


_SPUN_UP, _KNOWN_BY_CONFIG = {}, (xdan.Lorenz63, xdan.Lorenz96, xdan.TwoScaleLorenz96, xdan.KuramotoSivashinsky)


def _remembered(dynamics, labels, seed, members, purpose, like, compute=base.climatology):
    """States of the climate of a model of xdan, which are spun up once for each key."""
    if type(dynamics) not in _KNOWN_BY_CONFIG or dynamics.given_climate is not None:
        return compute(dynamics, labels, seed, members, purpose, like)
    model = (type(dynamics), repr(dynamics.config()), dynamics.spin_up_time, dynamics.model_step)
    key = (model, tuple(map(int, labels)), seed, members, purpose, like.dtype, like.device)
    if key not in _SPUN_UP:
        _SPUN_UP[key] = compute(dynamics, labels, seed, members, purpose, like)
    return _SPUN_UP[key].clone()


@pytest.fixture(scope="module", autouse=True)
def spun_up_once():
    """Spin-ups, an eighth of the time of all tests, are not repeated. Modules that test them override this fixture."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base, "climatology", _remembered)
        yield


@pytest.fixture(scope="session")
def model():
    return xdan.Lorenz96(sites=8)


@pytest.fixture(scope="session")
def twin(model):
    """Four trajectories of 24 cycles, in memory, float64: never change it in place."""
    ds = xdan.twin(model, cycles=24, trajectories=4, seed=1, dtype="float64")
    return ds.compute(scheduler="synchronous")


@pytest.fixture(scope="session")
def single(twin):
    """The same twin in float32, to train on."""
    floats = twin[["truth", "observation"]].astype("float32", keep_attrs=True)
    return twin.assign(floats)


@pytest.fixture(scope="session")
def architecture():
    return xdan.ResidualCNN(filters=4, blocks=1, kernel=3, memory=2)


@pytest.fixture(scope="session")
def quick():
    """Arguments of `train` that take well under a second."""
    return {"window": 4, "batch": 2, "steps": 8, "validate_every": 4, "progress": False}


@pytest.fixture(scope="session")
def net(single, architecture, quick):
    """A network with memory that has seen some training: better than nothing, and not at its random start."""
    return xdan.train(single, architecture, **{**quick, "steps": 30})


@pytest.fixture(scope="session")
def run(twin, net):
    """The network's run on the twin, in memory."""
    return xdan.cycle(twin, net)


@pytest.fixture(scope="session")
def ensemble(twin):
    """A run with five members kept."""
    return xdan.baseline(twin, "enkf-n", members=5, keep_members=True)


class Counter:
    """A scheduler that counts how often it is asked to compute."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, keys, **kwargs):
        self.calls += 1
        return dask.get(graph, keys, **kwargs)


@pytest.fixture
def computed():
    """Counts what is computed while the test runs."""
    counter = Counter()
    with dask.config.set(scheduler=counter):
        yield counter


@pytest.fixture(scope="session")
def untouchable():
    """Put dask arrays that raise when they are computed in place of some of a Dataset's variables."""

    def refuse(block):
        raise AssertionError("data was read")

    def replace(ds, *names):
        def lazy(variable):
            array = da.map_blocks(
                refuse,
                da.zeros(variable.shape, dtype=variable.dtype, chunks=(2, 8, -1)),
                dtype=variable.dtype,
                meta=np.array((), dtype=variable.dtype),
            )
            return xr.DataArray(array, dims=variable.dims, coords=variable.coords, attrs=variable.attrs)

        return ds.assign({name: lazy(ds[name]) for name in names})

    return replace
