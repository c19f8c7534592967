"""Models with learned parts in Zarr stores: named arrays of weights and a JSON description, no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.checks import shown
from ..core.dynamics import CorrectedDynamics, Dynamics, SurrogateDynamics, dynamics_from_json, dynamics_to_json
from ..core.formats import FORMATS, read_format
from ..core.keywords import checks_keywords
from ..core.spaces import StateSpace
from ..core.tendencies import TendencyNetwork, tendency_by_name, tendency_of_shapes
from .blocks import array_to_tensor, tensor_to_array
from .location import StoreLike, check_rewritable, locate, replacing, writing
from .schema import Array, to_json
from .store import check_writable, read_arrays, read_description, write_arrays

_KIND = "xdan model"
_WEIGHTS, _FINGERPRINT, _CLIMATE, _ERROR = "weights.", "fingerprint", "climatology", "model_error"
_CLASSES = {one.name: one for one in (CorrectedDynamics, SurrogateDynamics)}
_NEAR = 1e-6  # relative difference of two fingerprints that counts as rounding


@checks_keywords
def save_dynamics(dynamics: CorrectedDynamics | SurrogateDynamics, store: StoreLike, mode: str = "w-") -> None:
    """Save a model with a learned part as a Zarr group: named arrays and a JSON description.

    The description names the model that is corrected, but its class is not stored. A climatology and a model error that
    were set are stored, too.

    Parameters
    ----------
    dynamics : CorrectedDynamics or SurrogateDynamics
        The model to save.
    store : path or Zarr store
        Where to save it.
    mode : {"w-", "w"}
        "w-", the default, refuses a store that exists. "w" overwrites it: the old content of a folder stays until the
        new model is whole.

    Raises
    ------
    TypeError
        If the model has no learned part. Such a model needs no store: records hold its name and parameters.
    FileExistsError
        If the store exists and mode is not "w", or another call writes into it.
    ValueError
        If the store is a ZIP archive.

    Examples
    --------
    >>> import tempfile, xdan
    >>> model = xdan.CorrectedDynamics(xdan.Lorenz96(sites=8), xdan.LocalPolynomial())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     xdan.save_dynamics(model, f"{folder}/model.zarr")
    ...     xdan.open_dynamics(f"{folder}/model.zarr") == model
    True
    """
    if not isinstance(dynamics, tuple(_CLASSES.values())):
        raise TypeError(
            f"dynamics={shown(dynamics)}: expected a CorrectedDynamics or a SurrogateDynamics, whose weights need a "
            "store; the attributes of a record describe any other model"
        )
    store = locate(store)
    check_rewritable(store)
    arrays = {f"{_WEIGHTS}{name}": tensor_to_array(v) for name, v in dynamics.network.state_dict().items()}
    if isinstance(dynamics, CorrectedDynamics):
        arrays[_FINGERPRINT] = tensor_to_array(dynamics.model.fingerprint())
    if dynamics.given_climate is not None:
        arrays[_CLIMATE] = tensor_to_array(dynamics.given_climate.states)
    if (error := dynamics.model_error) is not None:
        arrays[_ERROR] = tensor_to_array(error.std if error.covariance is None else error.covariance)
    description = {
        "kind": _KIND,
        "format": FORMATS["dynamics"],
        "dynamics": dynamics_to_json(dynamics),
        "provenance": dynamics.provenance,
    }
    with writing(store):
        check_writable(store, mode)
        with replacing(store) as place:
            write_arrays(place, "", arrays, description)


@checks_keywords
def open_dynamics(store: StoreLike, model: Dynamics | None = None) -> CorrectedDynamics | SurrogateDynamics:
    """Open a model that `save_dynamics` saved; nothing is unpickled, imported or executed.

    Parameters
    ----------
    store : path or Zarr store
        A store that `save_dynamics` wrote.
    model : Dynamics, optional
        The model that is corrected. It is needed only if its class is not registered. One step of it must equal the
        step that was saved. Its climatology and model error are replaced by those of the store.

    Raises
    ------
    FileNotFoundError
        If the store does not exist.
    TypeError
        If `model` is not a Dynamics.
    ValueError
        If `save_dynamics` did not write the store, or the store was cut short; if it names a class that is not
        registered, or has weights of wrong shapes or weights that are not finite; or if `model` is another model.

    Examples
    --------
    >>> import tempfile, xdan
    >>> surrogate = xdan.SurrogateDynamics(xdan.QuadraticCNN(filters=4), xdan.Lorenz96(sites=8).space, timestep=0.05)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     xdan.save_dynamics(surrogate, f"{folder}/model.zarr")
    ...     xdan.open_dynamics(f"{folder}/model.zarr") == surrogate
    True
    """
    store = locate(store)
    description, shapes = read_description(store, "")
    if description.get("kind") != _KIND or not isinstance(description.get("dynamics"), Mapping):
        raise ValueError(
            f"{store} holds no model with a learned part: expected a store that save_dynamics wrote; networks are "
            "opened by open_network, records by xarray.open_zarr"
        )
    read_format("dynamics", description.get("format"), str(store))
    described = description["dynamics"]
    name, parameters = described.get("name"), described.get("parameters")
    if not isinstance(name, str) or name not in _CLASSES or not isinstance(parameters, Mapping):
        raise ValueError(f"{store} holds a model {shown(name)}: expected one of {sorted(_CLASSES)} and its parameters")
    network = parameters.get("network")
    if not isinstance(network, Mapping) or not isinstance(network.get("parameters"), Mapping):
        raise ValueError(f"{store} describes no network of its model {name!r}: expected a name and parameters")
    # This check comes before any array is read.
    tendency_of_shapes(network.get("name"), network["parameters"], _weights(shapes))  # type: ignore[arg-type]
    values, _ = read_arrays(store, "")
    made = tendency_by_name(network["name"], network["parameters"])
    made.load_state_dict({label: array_to_tensor(value) for label, value in _weights(values).items()})
    opened = _made(store, name, parameters, made, values, model, description.get("provenance"))
    if _CLIMATE in values:
        opened = opened.with_climatology(values[_CLIMATE])
    if _ERROR in values:
        error = values[_ERROR]
        opened = opened.with_model_error(**{"std" if error.ndim == 1 else "covariance": _shaped(error, opened)})
    if json.loads(to_json(dynamics_to_json(opened))) != described:
        raise ValueError(
            f"{store} does not open as the model that was saved: its weights or parameters were changed; "
            "save the model again, or open a copy"
        )
    return opened


def _weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that belong to the network, by their names in its state."""
    return {label.removeprefix(_WEIGHTS): one for label, one in values.items() if label.startswith(_WEIGHTS)}


def _shaped(error: Array, dynamics: Dynamics) -> Array:
    """Bring deviations of the packed state into the state's shape; a covariance stays as it is."""
    return error.reshape(dynamics.shape) if error.ndim == 1 else error


def _made(
    store: StoreLike,
    name: str,
    parameters: Mapping[str, Any],
    network: TendencyNetwork,
    arrays: Mapping[str, Array],
    model: Any,
    provenance: Any,
) -> CorrectedDynamics | SurrogateDynamics:
    """Make the model from its network and its parameters."""
    if name == SurrogateDynamics.name:
        if model is not None:
            raise ValueError(f"model={shown(model)}: {store} holds a surrogate, which corrects no model; expected None")
        rest: dict[str, Any] = {label: parameters.get(label) for label in ("timestep", "spin_up_time", "time_unit")}
        return SurrogateDynamics(network, StateSpace.from_json(parameters.get("space")), provenance=provenance, **rest)
    corrected = parameters.get("model")
    if model is None:
        try:
            model = dynamics_from_json(corrected if isinstance(corrected, Mapping) else {})
        except ValueError as reason:
            raise ValueError(f"{store}: the model that is corrected cannot be made: {reason}; here as model=") from None
    elif not isinstance(model, Dynamics):
        raise TypeError(f"model={shown(model)}: expected the Dynamics that is corrected")
    else:
        model = model._copied(given_climate=None, model_error=None)
        if json.loads(to_json(dynamics_to_json(model))) != corrected:
            raise ValueError(f"model={shown(model)}: expected the model that {store} corrects, {shown(corrected)}")
    here, there = tensor_to_array(model.fingerprint()), arrays.get(_FINGERPRINT)
    if there is None or there.shape != here.shape or not np.allclose(here, there, rtol=_NEAR, atol=_NEAR):
        raise ValueError(
            f"a step of the model {model.label!r} is not what it was when {store} was saved: expected the model that "
            "the correction was learned for"
        )
    return CorrectedDynamics(model, network, provenance)
