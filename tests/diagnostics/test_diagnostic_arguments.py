"""Wrong arguments of the diagnostics end in an error that names the argument and says what was expected."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.network import Network

WRONG = {
    "nothing": None,
    "word": "x",
    "list": [],
    "dict": {},
    "complex": 1j,
    "NaN": float("nan"),
    "negative": -1,
    "fraction": 1.5,
    "bytes": b"x",
    "slice": slice(None),
    "Dataset": xr.Dataset(),
    "array": np.ones((2, 2)),
    "point": np.array(2),
    "function": len,
    "tensor": torch.ones(3),
    "date": np.datetime64("2020-01-01"),
}
OPTIONAL, NUMBERS = {"nothing"}, {"fraction", "point"}
LISTS = {"list"}
# The verb, its other arguments, and what of the above each argument may be.
VERBS = {
    "gain": (
        xdan.gain,
        ("ds", "network"),
        {
            **dict.fromkeys(("run", "group", "reference", "all_sites", "samples"), OPTIONAL),
            **{label: set() for label in ("ds", "network", "kind", "method", "innovation", "every", "burn_in")},
            "seed": set(),
            "device": set(),
            "dim": OPTIONAL | LISTS,
            "forecast_error": OPTIONAL,
        },
    ),
    "symmetry_group": (xdan.symmetry_group, ("ds",), {"ds": set()}),
    "equivariance_error": (xdan.equivariance_error, ("ds", "network"), {"elements": set(), "group": OPTIONAL}),
    "zero_innovation_bias": (xdan.zero_innovation_bias, ("ds", "network"), {"run": OPTIONAL, "every": set()}),
    "stein_identity": (
        xdan.stein_identity,
        ("ds", "network"),
        {"samples": set(), "forecast_error": OPTIONAL | NUMBERS, "network": set()},
    ),
    "scaling_of_increments": (
        xdan.scaling_of_increments,
        ("ds", "network", "run", "scales"),
        {"run": set(), "scales": NUMBERS | {"tensor"}, "method": set(), "samples": OPTIONAL, "cutoff": OPTIONAL},
    ),
    "innovation_histogram": (
        xdan.innovation_histogram,
        ("ds", "network", "run"),
        {"run": set(), "bins": set(), "limit": OPTIONAL | {"fraction"}},
    ),
    "ensemble_covariance": (xdan.ensemble_covariance, ("ensemble",), {"run": set(), "of": set()}),
    "covariance_spectrum": (xdan.covariance_spectrum, ("covariance",), {"covariance": set()}),
    "principal_angles": (
        lambda one, other, modes=2, other_modes=None: xdan.principal_angles(
            one, other, modes=modes, other_modes=other_modes
        ),
        ("one", "other"),
        {"one": set(), "other": set(), "modes": set(), "other_modes": OPTIONAL},
    ),
    "pattern_extent": (xdan.pattern_extent, ("omega",), {"omega": set(), "share": set(), "dynamics": OPTIONAL}),
    "reconstruct_gain": (
        lambda averages, group: xdan.reconstruct_gain(averages, group=group),
        ("averages", "group"),
        {"averages": set(), "group": set()},
    ),
    "lyapunov_spectrum": (
        xdan.lyapunov_spectrum,
        ("dynamics",),
        {
            **{label: set() for label in ("dynamics", "trajectories", "seed")},
            "time": {"fraction"},
            "spin_up": OPTIONAL | {"fraction"},
            "interval": OPTIONAL | {"fraction"},
            "vectors": OPTIONAL,
        },
    ),
    "lyapunov_vectors": (
        xdan.lyapunov_vectors,
        ("ds",),
        {
            **{label: set() for label in ("ds", "kind", "seed")},
            "interval": OPTIONAL | {"fraction"},
            **dict.fromkeys(("vectors", "spin_up", "dynamics", "truth"), OPTIONAL),
        },
    ),
    "scaling_law": (
        xdan.scaling_law,
        ("cube",),
        {label: set() for label in ("cube", "size", "batch", "value", "bootstrap", "seed")},
    ),
    "committee": (xdan.committee, ("networks",), {"networks": set()}),
    "Group.ring": (xdan.Group.ring, ("sites",), {"sites": set(), "step": set()}),
    "Group.grid": (xdan.Group.grid, ("shape", "steps"), {"shape": set(), "steps": set()}),
    "Group.rotations": (
        xdan.Group.rotations,
        ("latitudes", "longitudes"),
        {"latitudes": set(), "longitudes": set(), "step": set()},
    ),
    "Group.trivial": (xdan.Group.trivial, ("sites",), {"sites": set()}),
    "Group.translations": (xdan.Group.translations, ("shape", "offsets"), {"shape": set(), "offsets": set()}),
    "Group.generated_by": (
        lambda permutations: xdan.Group.generated_by(permutations),
        ("permutations",),
        {"permutations": set()},
    ),
}


@pytest.fixture(scope="module")
def right(twin, ensemble):
    """Arguments that all verbs accept."""
    torch.manual_seed(0)
    module = xdan.ResidualCNN(filters=3, blocks=1, kernel=3)
    module.normalise(2.3, 3.6, 1.0)
    net = Network.from_module(module, ("x",), {})
    ds = twin.isel(time=slice(0, 8))
    covariance = ds.isel(time=[0]).dan.gain(net, kind="covariance").compute()
    sizes = {"trajectories": [10, 20, 40, 80], "batch": [1, 2, 4, 8]}
    rmse = 1.0 + np.random.default_rng(0).random((4, 4))
    return {
        "ds": ds,
        "network": net,
        "run": ds.dan.cycle(net),
        "scales": [0.5, 2.0],
        "ensemble": ensemble,
        "covariance": covariance,
        "one": covariance,
        "other": covariance,
        "omega": ds.isel(time=[0]).dan.gain(net).compute(),
        "averages": ds.isel(time=[0]).dan.gain(net).compute(),
        "group": xdan.Group.ring(8),
        "dynamics": xdan.Lorenz96(sites=8),
        "cube": xr.Dataset({"rmse": (tuple(sizes), rmse)}, sizes),
        "networks": [net, net],
        "sites": 8,
        "shape": (2, 4),
        "steps": (1, 2),
        "latitudes": 2,
        "longitudes": 4,
        "offsets": [(0, 0), (0, 2)],
        "permutations": (1, 0),
    }


@pytest.mark.parametrize(
    ("verb", "label"), [(verb, label) for verb, (_, _, labels) in VERBS.items() for label in labels]
)
def test_a_wrong_argument_is_named(right, verb, label):
    call, needed, labels = VERBS[verb]
    arguments = {("run" if name == "ensemble" else name): right[name] for name in needed}
    if verb == "gain" and label == "samples":
        arguments["method"] = "regression"
        arguments["kind"] = "covariance"
    for name, value in WRONG.items():
        if name in labels[label]:
            continue
        with pytest.raises((TypeError, ValueError), match=r"expected|name no dynamics|lacks") as caught:
            call(**{**arguments, label: value})
        assert "arguments" not in str(caught.value)
        kinds = {"word", "dict", "complex", "bytes", "slice", "function"}
        if name in kinds - {"word"}:
            assert label in str(caught.value), (name, caught.value)


def test_numbers_of_numpy_are_accepted(right):
    ds, net = right["ds"], right["network"]
    few = xdan.gain(ds, net, every=np.int64(4), burn_in=np.int32(1), reference=np.int64(2), all_sites=np.False_)
    assert few.attrs["reference"] == 2
    assert type(few.attrs["reference"]) is int
    same = xdan.gain(ds, net, every=4, burn_in=1, reference=2, all_sites=False)
    xr.testing.assert_identical(few.compute(), same.compute())
    spectrum = xdan.lyapunov_spectrum(
        xdan.Lorenz63(), time=np.float32(1.0), spin_up=np.float64(0.5), trajectories=np.int64(1), vectors=np.int8(2)
    )
    assert spectrum.sizes["vector"] == 2
    assert len(xdan.Group.ring(np.int64(8), step=np.int64(2))) == 4
    assert len(xdan.Group.generated_by(np.array([1, 2, 0]))) == 3
    scales = np.array([0.5, 2.0], dtype=np.float32)
    ratio = xdan.scaling_of_increments(ds, net, right["run"], scales, cutoff=np.float32(1e-3)).ratio
    assert ratio.sizes == {"scale": 2}


@pytest.mark.parametrize(("dtype", "computed"), [(np.float16, np.float32), (np.longdouble, np.float64)])
def test_odd_precisions_are_computed_in_one_that_torch_has(right, dtype, computed):
    ds, net = right["ds"].isel(time=slice(0, 2)), right["network"]
    odd = ds.assign({name: ds[name].astype(dtype) for name in ("truth", "observation")})
    gain = xdan.gain(odd, net, kind="covariance")
    assert gain.dtype == computed
    rounded = odd.assign({name: odd[name].astype(np.float64) for name in ("truth", "observation")})
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if computed is np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(gain.values, xdan.gain(rounded, net, kind="covariance").values, **tolerance)
