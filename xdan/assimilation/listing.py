"""Tables of the methods, networks and models that have names."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from ..core.dynamics import known_dynamics
from ..core.methods.base import METHODS
from ..core.networks import known_networks
from ..core.registry import constructor_parameters
from ..network import SHIPPED, open_network, shipped_store


def baselines() -> pd.DataFrame:
    """Make a table of the methods that `baseline` runs by name.

    Returns
    -------
    pandas.DataFrame
        A row for each name. The column `what` is one sentence, `parameters` lists all parameters with their defaults,
        and `tunable` lists the parameters that may be "tune". `print(xdan.baselines().to_string())` shows all of it.

    Examples
    --------
    >>> table = baselines()
    >>> "inflation" in table.loc["etkf", "tunable"]
    True
    """
    rows = {}
    for name in METHODS:
        cls = METHODS[name]
        fixed = set(cls.fixed)
        rows[name] = {
            "what": _summary(cls),
            "parameters": _signature(cls, {}, without=fixed),
            "tunable": ", ".join(cls.tunable),
        }
    return _table(rows)


def networks() -> pd.DataFrame:
    """Make a table of the networks that `train` makes and of the trained ones that `open_network` opens, by name.

    Returns
    -------
    pandas.DataFrame
        A row for each name. The column `what` is one sentence, `parameters` lists the parameters, and
        `validation_rmse` is the RMSE of a trained network, in the units of its state. It is NaN for other networks.

    Examples
    --------
    >>> float(networks().loc["residual-cnn", "validation_rmse"])
    nan
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, (cls, preset) in known_networks().items():
        parameters = _signature(cls, preset, without={"space"})
        rows[name] = {"what": _summary(cls), "parameters": parameters, "validation_rmse": float("nan")}
    for name in SHIPPED:
        description = open_network(shipped_store(name)).description
        training, data = description["training"], description["training"]["data"]
        model = (data.get("dynamics") or data["endless"])["name"]
        rows[name] = {
            "what": f"Trained {description['name']} for {model}, interval {data['interval']:g}.",
            "parameters": ", ".join(f"{key}={value!r}" for key, value in description["parameters"].items()),
            "validation_rmse": training["validation_rmse"],
        }
    return _table(rows)


def models() -> pd.DataFrame:
    """Make a table of the models that records and stores know by name.

    Returns
    -------
    pandas.DataFrame
        A row for each name. The column `what` is one sentence, `class` names the class, and `parameters` lists the
        parameters.

    Examples
    --------
    >>> models().loc["lorenz96", "class"]
    'Lorenz96'
    """
    rows = {}
    for name, cls in known_dynamics().items():
        rows[name] = {"what": _summary(cls), "class": cls.__name__, "parameters": _signature(cls, {})}
    return _table(rows)


def _table(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def _summary(cls: type) -> str:
    """First sentence of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def _signature(cls: type, preset: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Parameters of a constructor and their defaults; also those of its parents, if it passes arguments on."""
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and base is not object:
            for one in inspect.signature(vars(base)["__init__"]).parameters.values():
                defaults[one.name] = one.default
    words = []
    for name in constructor_parameters(cls):
        if name in without:
            continue
        value = preset.get(name, defaults[name])
        words.append(name if value is inspect.Parameter.empty else f"{name}={value!r}")
    return ", ".join(words)
