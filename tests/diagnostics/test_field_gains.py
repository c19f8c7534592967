"""Gains between chosen fields are parts of the whole gain, with the fields' labels and units."""

import numpy as np
import pytest
import torch

import xdan
from xdan.core.networks import AnalysisNetwork, ResidualCNN, register_network
from xdan.core.networks.registry import _NETWORKS
from xdan.network import Network
from xdan.records.fields import component_text

RING, SPHERE = xdan.Ring(3, length=6.0, units="km"), xdan.Sphere(2, 2)
SLICES = {"h": slice(0, 3), "t": slice(3, 7)}


@pytest.fixture(scope="module")
def model():
    fields = [xdan.Field("h", RING, "m"), xdan.Field("t", SPHERE, "K")]
    return xdan.CustomDynamics(
        lambda f: {name: -x for name, x in f.items()}, state=fields, timestep=0.05, spin_up_time=0.0
    )


@pytest.fixture(scope="module")
def network():
    """A dense one, that knows nothing of fields."""

    @register_network
    class Dense(AnalysisNetwork):
        name = "dense-toy"

        def config(self):
            return {}

        def forward(self, x, zeta, memory=None):
            weights = torch.linspace(-1.0, 1.0, 49, dtype=x.dtype).reshape(7, 7)
            return x + torch.sin(x @ weights) * (zeta @ weights.T), None

    yield Network.from_module(Dense().double(), ("state",), {})
    del _NETWORKS._classes["dense-toy"]


@pytest.fixture(scope="module")
def twin(model):
    return xdan.twin(model, interval=0.05, cycles=2, trajectories=2, dtype="float64").compute()


@pytest.mark.parametrize("fields", [("h", "t", "h"), ("t", "t", "h"), "t"])
def test_marginal_gain_between_fields_is_a_part_of_the_whole(twin, model, network, fields):
    whole = twin.dan.gain(network, kind="marginal", dynamics=model)
    part = twin.dan.gain(network, kind="marginal", dynamics=model, fields=fields)
    i, j, site = (SLICES[name] for name in ((fields,) * 3 if isinstance(fields, str) else fields))
    np.testing.assert_allclose(part, whole.values[..., i, j, site], rtol=0, atol=1e-14)
    assert part.dims == ("trajectory", "time", "i", "j", "l")


@pytest.mark.parametrize("kind", ["covariance", "kalman"])
def test_covariance_and_gain_between_fields(twin, model, network, kind):
    whole = twin.dan.gain(network, kind=kind, dynamics=model)
    part = twin.dan.gain(network, kind=kind, dynamics=model, fields=("t", "h"))
    np.testing.assert_allclose(part, whole.values[..., 3:, :3], rtol=0, atol=1e-14)
    assert part.attrs["units"] == {"covariance": "K m", "kalman": "K (m)-1"}[kind]
    assert part.attrs["fields"] == "t h"


def test_symmetry_average_about_a_site_of_the_forecast_field(twin, model, network):
    """With the identity alone the average is the mean marginal gain at that site."""
    group = xdan.Group.trivial(7)
    options = {"dynamics": model, "fields": ("h", "h", "t")}
    gamma = twin.dan.gain(network, kind="marginal", dim=("trajectory", "time"), **options)
    for reference in (0, 3):
        omega = twin.dan.gain(network, group=group, reference=reference, **options)
        np.testing.assert_allclose(omega, gamma.isel(l=reference), rtol=0, atol=1e-14)
        assert omega.attrs["reference"] == reference
    middle = twin.dan.gain(network, group=group, **options).attrs
    assert middle["reference"] == 2
    assert middle["reference_site"] == component_text(model, model.space.slices["t"].start + 2)
    assert middle["reference_site"].startswith("t, ")
    assert omega.attrs["units"] == "m m (K)-1"
    with pytest.raises(ValueError, match="reference=4: expected a site from 0 to 3"):
        twin.dan.gain(network, group=group, reference=4, **options)


def test_average_over_a_group_of_the_packed_state(twin, model, network):
    """The turns of the ring: i, j and l in it are carried along, components on the sphere stay."""
    turn = [1, 2, 0, 3, 4, 5, 6]
    group = xdan.Group.generated_by(turn)
    omega = twin.dan.gain(network, group=group, dynamics=model, fields=("t", "h", "h"), reference=1, all_sites=True)
    gamma = twin.dan.gain(network, kind="marginal", dim=("trajectory", "time"), dynamics=model).values
    turned = [gamma[np.ix_(g, g)][:, :, g[1]] for g in (np.arange(7), np.array(turn), np.array(turn)[turn])]
    np.testing.assert_allclose(omega, np.mean(turned, 0)[3:, :3], rtol=0, atol=1e-14)


def test_labels_are_the_fields(twin, model, network):
    part = twin.dan.gain(network, kind="marginal", dynamics=model, fields=("t", "h", "h"))
    np.testing.assert_allclose(part.j, [0.0, 2.0, 4.0])
    assert (part.j.attrs["units"], part.j.attrs["periodic"]) == ("km", 1)
    np.testing.assert_allclose(part.i_lat, [-45, -45, 45, 45])
    np.testing.assert_allclose(part.i_lon, [0, 180, 0, 180])
    assert (part.i_lat.attrs["periodic"], part.i_lon.attrs["periodic"]) == (0, 1)
    whole = twin.dan.gain(network, kind="covariance", dynamics=model)
    assert whole.i_field.values.tolist() == ["h"] * 3 + ["t"] * 4


def test_one_field_has_its_own_labels():
    net = Network.from_module(ResidualCNN(filters=4, blocks=1, kernel=3).double(), ("x",), {})
    ring = xdan.Lorenz96(sites=8)
    ds = xdan.twin(ring, cycles=2, trajectories=1).compute()
    omega = ds.dan.gain(net)
    assert omega.i.attrs["long_name"] == "site on the ring"
    np.testing.assert_array_equal(omega, ds.dan.gain(net, fields="x"))


@pytest.mark.parametrize(
    ("fields", "kind", "error", "message"),
    [
        (("h", "t"), "mean", ValueError, r"expected 3 of \['h', 't'\], for i and j and l"),
        (("h", "t", "h"), "covariance", ValueError, "expected 2 of"),
        ("depth", "mean", ValueError, "fields='depth': expected 3 of"),
        (3, "mean", TypeError, "fields=3: expected names of fields"),
        ((1, 2, 3), "mean", TypeError, "expected names of fields"),
    ],
)
def test_fields_that_are_not_there_are_refused(twin, model, network, fields, kind, error, message):
    with pytest.raises(error, match=message):
        twin.dan.gain(network, kind=kind, fields=fields, dynamics=model)
