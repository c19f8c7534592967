"""The registry of networks: names, and descriptions that fit stored arrays or are refused before they take memory."""

import inspect
import re
import textwrap
import threading

import numpy as np
import pytest
import torch
from torch import nn

from xdan.core.networks import (
    AnalysisNetwork,
    ResidualCNN,
    network_by_name,
    network_of_shapes,
    register_network,
    register_preset,
    registered_name,
)
from xdan.core.networks.registry import _NETWORKS

SMALL = {"filters": 3, "blocks": 2, "kernel": 3}
DESCRIBED = {
    "residual-cnn": {**SMALL, "memory": 1},
    "residual-cnn-blind": SMALL,
    "linear-in-zeta": {"form": "hypernetwork", "rank": 2, "width": 3, **SMALL},
    "ensemble-cnn": {"members": 3, **SMALL},
    "committee": {"networks": [{"name": "residual-cnn", "parameters": SMALL}] * 2},
}


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(_NETWORKS, "_classes", dict(_NETWORKS._classes))


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {label: tuple(value.shape) for label, value in network_by_name(name, DESCRIBED[name]).state_dict().items()}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_that_fits_its_arrays_takes_no_memory(name):
    made = network_of_shapes(name, DESCRIBED[name], shapes(name))
    assert type(made) is _NETWORKS[name]
    assert {value.device.type for value in made.state_dict().values()} == {"meta"}
    assert made.config() == network_by_name(name, DESCRIBED[name]).config()


LAYER = {"filters": 3, "blocks": 9_000, "kernel": 3}


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("residual-cnn", {**SMALL, "memory": 2}, r"'weights\.0' has shape \(3, 9\), expected \(3, 12\)"),
        ("residual-cnn", {**SMALL, "memory": 1, "blocks": 3}, r"expected \['weights\.4', 'biases\.4'\] too"),
        ("residual-cnn", {**SMALL, "memory": 1, "blocks": 1}, r"expected no \['weights\.3', 'biases\.3'\]"),
        ("residual-cnn", LAYER, "more than 12 arrays or 184 values"),
        ("residual-cnn", {**SMALL, "filters": 10_000}, "more than 12 arrays"),
        ("committee", {"networks": [{"name": "residual-cnn", "parameters": LAYER}] * 9_000}, "more than 12 arrays"),
        ("residual-cnn", {**SMALL, "blocks": 10**6}, "blocks=1000000: expected at least 1 and at most 10000"),
        ("residual-cnn", {**SMALL, "filters": "3"}, "filters='3': expected an integer"),
        ("residual-cnn", {**SMALL, "filters": None}, "filters=None: expected an integer"),
        ("residual-cnn", {**SMALL, "depth": 3}, r"has no parameters \['depth'\]"),
        ("residual-cnn", [3], r"parameters=\[3\]: expected a mapping"),
        ("os.system", {}, "'os.system' is unknown"),
        (["residual-cnn"], {}, "expected one of"),
        ("committee", {"networks": {"name": "residual-cnn"}}, "expected a list of names"),
        ("committee", {"networks": [{"name": "committee", "parameters": {}}] * 2}, "none of them a committee"),
    ],
)
def test_a_description_of_other_arrays_is_refused_before_it_takes_memory(name, parameters, message):
    with pytest.raises(ValueError, match=message) as caught:
        network_of_shapes(name, parameters, shapes("residual-cnn"))
    assert "expected" in str(caught.value)


def test_a_deep_description_is_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for parameters in ({"filters": deep}, {"activation": deep}):
        with pytest.raises(ValueError, match="cannot be made from its parameters"):
            network_of_shapes("residual-cnn", parameters, {})
    while deep:  # freed one by one: torch's own destructors would go as deep
        deep = deep[0]


def test_other_threads_may_make_networks_meanwhile(registry):
    """The bound is that of the thread that asked, and ends with the call."""
    made = []

    @register_network
    class Waits(ResidualCNN):
        name = "waits"

        def __init__(self, **parameters):
            super().__init__(**parameters)
            other = threading.Thread(target=lambda: made.append(ResidualCNN(filters=8, blocks=30)))
            other.start()
            other.join()

    network_of_shapes("waits", SMALL, {**shapes("residual-cnn-blind"), "weights.0": (3, 6)})
    assert made[0].weights[0].device.type == "cpu"
    assert len(ResidualCNN(filters=8, blocks=30).weights) == 32


def test_a_class_that_reads_its_tensors_while_it_is_made_is_bounded_too(registry):
    @register_network
    class Reads(AnalysisNetwork):
        name = "reads"

        def __init__(self, layers=1):
            super().__init__()
            self.scale = float(torch.ones(3).sum())  # has no value on the meta device
            self.layers = nn.ParameterList()
            for _ in range(layers):
                self.layers.append(nn.Parameter(torch.zeros(2)))

        def config(self):
            return {"layers": len(self.layers)}

        def forward(self, x, zeta, memory=None):
            return x, memory

    fits = {"state_mean": (), "state_std": (), "error_std": (), "layers.0": (2,)}
    assert network_of_shapes("reads", {"layers": 1}, fits).scale == 3.0
    with pytest.raises(ValueError, match="more than 4 arrays or 5 values"):
        network_of_shapes("reads", {"layers": 10**7}, fits)


def test_a_name_belongs_to_one_class(registry):
    def make(tag):
        class Another(ResidualCNN):
            name = tag

        return Another

    first = register_network(make("another"))
    assert registered_name(first(**SMALL)) == "another"
    register_network(make("another"))  # a cell that runs again
    with pytest.raises(ValueError, match="Another is not registered"):
        registered_name(first(**SMALL))
    with pytest.raises(ValueError, match=r"the name 'residual-cnn' is that of .*ResidualCNN: expected another"):
        register_network(make("residual-cnn"))
    with pytest.raises(ValueError, match="the name 'committee' is that of"):
        register_preset("committee", ResidualCNN)
    assert type(network_by_name("residual-cnn", SMALL)) is ResidualCNN


class Nameless(ResidualCNN):
    """Its name is its parent's."""


@pytest.mark.parametrize("cls", [3, None, "residual-cnn", dict, Nameless, ResidualCNN(**SMALL)])
def test_what_has_no_name_or_is_no_network_is_not_registered(cls):
    with pytest.raises(TypeError, match="expected"):
        register_network(cls)
    if cls is not Nameless:
        with pytest.raises(TypeError, match="expected"):
            register_preset("new", cls)
    with pytest.raises(TypeError, match="name=3: expected a string"):
        register_preset(3, ResidualCNN)


def test_a_class_without_a_name_of_its_own_is_not_saved_as_its_parent():
    with pytest.raises(ValueError, match=r"Nameless is not registered.*expected a `name` in the class"):
        registered_name(Nameless(**SMALL))


def test_the_network_in_the_docstring_is_a_whole_one(registry):
    """As a user would write it in a file: it is made by name, is described, and moves sites towards observations."""
    block = re.search(r"::\n\n(    import torch.*?\n)(?=\S)", inspect.getdoc(AnalysisNetwork), re.DOTALL)
    exec(compile(textwrap.dedent(block[1]), "nudging.py", "exec"), {"__name__": "nudging"})
    net = network_by_name("nudging", {"width": 5})
    assert net.config() == {"width": 5}
    assert network_of_shapes("nudging", {"width": 5}, {k: tuple(v.shape) for k, v in net.state_dict().items()})
    net.normalise(2.3, 3.6, 2.0)
    zeta = torch.zeros(1, 9)
    zeta[0, 4] = 1.0
    analysis, memory = net(torch.zeros(1, 9), zeta)
    assert memory is None
    torch.testing.assert_close(analysis[0], torch.tensor([0, 0, 0.4, 0.4, 0.4, 0.4, 0.4, 0, 0]))
    expected = torch.stack([0.4 * torch.eye(9).roll(k, 0) for k in range(-2, 3)]).sum(0)
    torch.testing.assert_close(net.analysis_covariance(torch.zeros(1, 9), zeta, None)[0], expected)


class Described(AnalysisNetwork):
    """It has no config of its own."""

    name = "described"

    def __init__(self, size=2, *, label="a", factor=0.5, **unused):
        super().__init__()
        self.size, self.label = size, label

    def forward(self, x, zeta, memory=None):
        return x, memory


class Handing(ResidualCNN):
    """It has one parameter more than its parent."""

    def __init__(self, power=2, **parameters):
        super().__init__(**parameters)
        self.power = power


def test_a_config_is_the_constructors_parameters_by_default():
    net = Handing(power=3, **SMALL)
    parameters = inspect.signature(ResidualCNN).parameters
    assert list(net.config()) == ["power", *(name for name in parameters if name != "space")]
    assert Handing(**net.config()).config() == net.config() == {**ResidualCNN(**SMALL).config(), "power": 3}


def test_what_no_config_can_be_made_of_is_named():
    net = Described()
    with pytest.raises(TypeError, match=r"Described\.factor is missing: expected the plain value that __init__ was"):
        net.config()
    for value in (np.int64(3), torch.ones(2), (1, 2), float("nan"), len):
        net.factor = value
        with pytest.raises(TypeError, match=r"Described\.factor is .*: expected the plain value .* or a method config"):
            net.config()
    net.factor = [1, "b", {"c": None}]
    assert net.config() == {"size": 2, "label": "a", "factor": [1, "b", {"c": None}]}


@pytest.mark.parametrize(
    ("name", "parameters", "shape", "message"),
    [
        (
            "residual-cnn",
            SMALL,
            (4, 5),
            r"dims \('y', 'x'\): expected one, as the network .* was made for a ring",
        ),
        ("ensemble-cnn", SMALL, (), r"the state has dims \(\): expected one"),
        ("linear-in-zeta", {"radius": 4.0}, (13,), r"the taper spans 15 sites, the state has 13; .* at most 3.5"),
        ("linear-in-zeta", {"form": "hypernetwork"}, (8,), "width=9: the state has 8 sites; expected at least"),
        ("committee", {"networks": [{"name": "residual-cnn"}, {"name": "linear-in-zeta"}]}, (18,), "spans 19 sites"),
    ],
)
def test_states_that_a_network_does_not_take_are_refused(name, parameters, shape, message):
    net = network_by_name(name, parameters)
    with pytest.raises(ValueError, match=message):
        net.check_state(("y", "x")[: len(shape)], shape)
    net.check_state(["x"], [40])
