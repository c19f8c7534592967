"""Tables of methods, networks and models: each name, with parameters that its constructor takes."""

import ast

import numpy as np
import pytest

import xdan
from xdan.core.dynamics import known_dynamics
from xdan.core.methods.base import METHODS
from xdan.core.methods.registry import accepted_parameters
from xdan.core.networks import network_by_name, network_parameters


def keywords(text):
    """Parameters with defaults of a signature's text."""
    call = ast.parse(f"f({text})", mode="eval").body
    return {one.arg: ast.literal_eval(one.value) for one in call.keywords}


def test_every_method_has_a_row_that_says_its_parameters():
    table = xdan.baselines()
    assert list(table.index) == list(METHODS)
    for name, row in table.iterrows():
        assert keywords(row.parameters).keys() == accepted_parameters(name)
        assert row.what.endswith((".", ":"))
        assert set(filter(None, row.tunable.split(", "))) == set(METHODS[name].tunable)


def test_defaults_are_those_of_the_method():
    defaults = keywords(xdan.baselines().parameters["letkf"])
    method = METHODS["letkf"]()
    assert defaults == {name: getattr(method, name) for name in defaults}


def test_networks_by_name_and_trained_ones():
    table = xdan.networks()
    architectures = table[table.validation_rmse.isna()]
    for name, row in architectures.iterrows():
        assert keywords(row.parameters).keys() == network_parameters(name) - {"space"}
    linear = keywords(table.parameters["residual-cnn-linear"])
    assert linear["activation"] == network_by_name("residual-cnn-linear", {}).activation == "linear"
    trained = xdan.open_network("lorenz96")
    assert table.validation_rmse["lorenz96"] == trained.description["training"]["validation_rmse"]
    assert np.isfinite(table.validation_rmse).sum() == len(table) - len(architectures) > 5


@pytest.mark.parametrize("name", sorted(known_dynamics()))
def test_every_model_has_a_row(name):
    row = xdan.models().loc[name]
    assert row["class"] == known_dynamics()[name].__name__
