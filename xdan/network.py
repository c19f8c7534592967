"""A trained network: weights as named arrays, a description of its making, and the history of its training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor, nn
from zarr.errors import GroupNotFoundError

from .core.checks import perhaps, shown, warn
from .core.dynamics import CorrectedDynamics, Dynamics
from .core.formats import FORMATS, read_format
from .core.keywords import checks_keywords
from .core.methods import DataAssimilationNetwork, method_of
from .core.networks import (
    AnalysisNetwork,
    Committee,
    check_same_fields,
    how_to_open,
    module_networks,
    moved,
    named_modules,
    network_by_name,
    network_of_shapes,
    networks_of,
    registered_name,
    with_modules,
)
from .core.registry import constructor_parameters
from .core.spaces import STATE, StateSpace
from .core.tables import html_table
from .core.tendencies import TendencyNetwork
from .records.blocks import array_to_tensor, tensor_to_array
from .records.location import StoreLike, check_rewritable, has_root, locate, replacing, writing
from .records.schema import WHOLE, Array
from .records.setting import disagreements
from .records.store import check_writable, digest, read_arrays, read_description, sealed, write_arrays

_HISTORY = "history_digest"
_LONGEST_HISTORY = 10_000_000  # most rows
_AGAIN = "expected the store as it was saved: save the network again, or open a copy"
_WEIGHTS = ("float16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
_SAME_ERROR = 0.05  # the largest relative difference of observation errors that is allowed
_LEAST_SEEN = 100  # least number of observations for a check of their climate
_TRAINED = Path(__file__).with_name("trained")
SHIPPED = tuple(sorted(path.stem for path in _TRAINED.glob("*.zarr")))
"""Names of the networks that come with xdan. The `description` of each says how it was trained."""

# Torch modules of networks in use. They are released, with their memory on a GPU, together with the network.
_methods: WeakKeyDictionary[Network, dict[tuple[torch.dtype, str], DataAssimilationNetwork]] = WeakKeyDictionary()


class Network:
    """A data assimilation network, frozen.

    `train` and `open_network` make networks. The weights of a network do not change: further training returns another
    network. dask graphs hold a network as these few arrays, and each process makes a torch module of it once.

    Attributes
    ----------
    description : dict
        JSON: the registered name, the parameters, the state's dims, and the settings of its training.
    arrays : dict of numpy.ndarray
        Weights and normalisation; read-only.
    history : xarray.Dataset or None
        Numbers of training and validation along `step`.
    prototype : AnalysisNetwork or None
        The network around a torch module of yours. The description cannot make it, and a store does not hold it. None
        for other networks.

    Examples
    --------
    >>> import xdan
    >>> net = xdan.open_network("lorenz96-single")  # one that comes with xdan
    >>> net.description["name"], net.description["state_dims"]
    ('kalman-cnn', ['x'])
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        arrays: Mapping[str, Array],
        history: xr.Dataset | None = None,
        prototype: AnalysisNetwork | None = None,
    ) -> None:
        self.description = dict(description)
        self.arrays = {name: np.array(value) for name, value in arrays.items()}
        for value in self.arrays.values():
            value.setflags(write=False)
        self.history = history
        self.prototype = prototype
        self.digest = digest(
            {key: self.description[key] for key in ("name", "parameters", "modules") if key in self.description},
            *(self.arrays[name] for name in sorted(self.arrays)),
        )

    @classmethod
    def from_module(
        cls,
        module: AnalysisNetwork,
        dims: tuple[str, ...],
        training: Mapping[str, Any],
        history: xr.Dataset | None = None,
    ) -> Network:
        """Freeze a copy of a torch module."""
        prototype = None if module.follows_from_config else copy.deepcopy(module).cpu().eval()
        description = {
            "format": FORMATS["network"],
            "name": registered_name(module),
            "parameters": module.config(),
            "state_dims": list(dims),
            "training": dict(training),
        }
        if prototype is not None:
            description["modules"] = [one.seen() for one in module_networks(prototype)]
        return cls(description, {n: tensor_to_array(v) for n, v in module.state_dict().items()}, history, prototype)

    @property
    def memory(self) -> int:
        """Number of latent channels for each site."""
        return _method(self, torch.float32, "cpu").network.memory

    @property
    def ensemble(self) -> bool:
        """Whether the network corrects members, not a single forecast."""
        return _method(self, torch.float32, "cpu").ensemble

    @property
    def state_dims(self) -> tuple[str, ...]:
        """Dims of the states that the network was trained on."""
        return tuple(self.description["state_dims"])

    @property
    def space(self) -> StateSpace | None:
        """Space of the states that the network was made for; None for one field on a ring of any length."""
        return _method(self, torch.float32, "cpu").network.space

    def module(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> AnalysisNetwork:
        """Return a torch module with these weights, a new one at every call, in evaluation mode.

        Raises
        ------
        ValueError
            If the description makes no network, or the arrays do not fit this network. Sizes are checked before memory
            is taken.
        """
        name, parameters = self.description["name"], self.description["parameters"]
        if odd := [label for label, value in self.arrays.items() if value.dtype.name not in _WEIGHTS]:
            raise ValueError(
                f"arrays {odd[:4]} are of type {self.arrays[odd[0]].dtype}: expected real numbers of at most 64 bits"
            )
        if self.prototype is None:
            network_of_shapes(name, parameters, {label: value.shape for label, value in self.arrays.items()})
            module = network_by_name(name, parameters)
        else:
            module = copy.deepcopy(self.prototype)
        weights = {name: array_to_tensor(value) for name, value in self.arrays.items()}
        if any(value.dtype == torch.float64 for value in weights.values()):
            module.double()  # single precision would round the arrays
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the arrays do not fit the network {self.description['name']!r}: {error}") from None
        return module.to(device=device, dtype=dtype).eval()

    def with_parameters(self, **parameters: Any) -> Network:
        """Return a network with these weights and other parameters, such as `c2` or `past` of a KalmanCNN.

        The description keeps the parameters of the training under "training".

        Raises
        ------
        TypeError, ValueError
            If the network lacks a parameter, or the parameter needs other weights.
        """
        self._check_described("with_parameters", "make the module with other values, and train the network on it")
        module = self.module()
        known = constructor_parameters(type(module))
        if unknown := sorted(set(parameters) - set(known)):
            raise TypeError(
                f"{unknown}: the network {self.description['name']!r} has {sorted(known)}, expected some of these"
            )
        made = network_by_name(self.description["name"], {**module.config(), **parameters})
        network = Network({**self.description, "parameters": made.config()}, self.arrays, self.history)
        network.module()
        return network

    def for_space(self, space: StateSpace) -> Network:
        """Return a network with these weights for these fields on another grid of the same kind.

        The grid may be a longer ring, or a finer grid of a sphere. Kernels keep their width in grid points: on a grid
        with half the spacing they reach half as far. Fixed inputs are taken from the new space.

        Parameters
        ----------
        space : StateSpace
            The new space, such as `model.space`.

        Raises
        ------
        TypeError
            If `space` is no StateSpace, or the network was made without a space: such a network works on any ring.
        ValueError
            If fields, units, kinds of geometry or fixed inputs differ.
        """
        if not isinstance(space, StateSpace):
            raise TypeError(f"space={shown(space)}: expected a StateSpace, such as the `space` of a dynamics")
        self._check_described("for_space", "train the module on a record of these fields")
        if self.space is None:
            raise TypeError(
                f"the network {self.description['name']!r} has no space of its own: expected one that was trained on "
                "fields with a space; this one works on any ring as it is"
            )
        if "space" not in self.module().config():
            raise TypeError(
                f"the network {self.description['name']!r} is made of others: expected one of these; take for_space of "
                "each before they are put together"
            )
        _check_alike(self.space, space)
        module = type(self.module())(**{**self.module().config(), "space": space})
        inputs = {name: value for name, value in module.state_dict().items() if name == "fixed_inputs"}
        arrays = {**self.arrays, **{name: value.numpy() for name, value in inputs.items()}}
        changed = {**self.description, "parameters": module.config()}
        network = Network(changed, arrays, self.history)
        network.module()
        return network

    def method(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DataAssimilationNetwork:
        """Return the method that cycles with this network.

        A process keeps one torch module for each dtype and device as long as the network exists. Networks with equal
        weights share this module.
        """
        return _method(self, dtype, device)

    def _check_described(self, verb: str, remedy: str) -> None:
        """Refuse to make a network anew if it holds a torch module of a user."""
        if self.prototype is not None:
            raise TypeError(
                f"{verb}() makes a network anew, and this one holds {named_modules(self.description)}, of which xdan "
                f"knows no parameters: expected a network of registered classes; {remedy}"
            )

    def corrected(self, model: Dynamics) -> CorrectedDynamics:
        """Return a model with the correction that the network learned beside its analysis, for other methods.

        Raises
        ------
        ValueError
            If the network holds no correction, or a correction of other fields.
        """
        correction = self.module().model_correction()
        if correction is None:
            raise ValueError(
                f"the network {self.description['name']!r} holds no correction of the model: expected one such as "
                "xdan.CorrectingCNN, trained on a wrong model"
            )
        assert isinstance(correction, TendencyNetwork)
        return CorrectedDynamics(model, correction, {"learned": "through the cycles", "network": self.digest})

    def check(self, dynamics: Dynamics) -> None:
        """Refuse a dynamics if the network cannot work on its states.

        Raises
        ------
        ValueError
            If the state's dims or fields are not those of the training.
        """
        differ = dynamics.dims != self.state_dims
        several = STATE in (*dynamics.dims, *self.state_dims)
        if differ and several and self.space is None:
            raise ValueError(
                f"the network works on states with the dims {self.state_dims}, the record's state has the fields "
                f"{dynamics.space.names}: expected such states; or train a network on this record"
            )
        if differ and not several:
            raise ValueError(
                f"the network works on states with dims {self.state_dims}, the record's state has "
                f"{dynamics.dims}: rename the record's dims, or train a network on this record"
            )
        if self.space is not None:
            check_same_fields(self.space, dynamics.space, f"the network {self.description['name']!r}")
        if self.prototype is not None:  # a user's module may be for one number of sites
            _method(self, torch.float32, "cpu").network.check_state(dynamics.dims, dynamics.shape)

    def check_climate(self, observation: Array, error_variance: Tensor) -> None:
        """Refuse observations whose climate is not that of the network's training, for example in other units.

        Parameters
        ----------
        observation : array, shape (R, K, *observations)
        error_variance : Tensor
            Diagonal of R. For several fields it must broadcast to the observations.

        Raises
        ------
        ValueError
            If the observations' median is more than 3 s from the mean of the training's states, or their standard
            deviation is below a third of the states' or above 3 s. Here s^2 is the states' variance plus R.
        """
        if self.space is None or self.space.single:
            mean, std = float(self.arrays["state_mean"]), float(self.arrays["state_std"])
            _check_climate("", observation, mean, std, float(error_variance.mean()))
            return
        variance = error_variance.expand(*error_variance.shape[:-1], observation.shape[-1])
        moments = zip(self.arrays["state_mean"], self.arrays["state_std"], strict=True)
        for (name, part), (mean, std) in zip(self.space.slices.items(), moments, strict=True):
            errors = float(variance[..., part].mean())
            _check_climate(f" of the field {name!r}", observation[..., part], float(mean), float(std), errors)

    def to_zarr(self, store: StoreLike, mode: str = "w-") -> None:
        """Save the network as a Zarr group: named arrays, a JSON description, and the history as a separate group.

        Parameters
        ----------
        store : path or Zarr store
            Where to save the network.
        mode : {"w-", "w"}
            "w-", the default, refuses a store that exists. "w" overwrites it: the old content of a folder stays until
            the new network is whole.

        Raises
        ------
        FileExistsError
            If the store exists and mode is not "w", or another call writes into it.
        ValueError
            If the store is a ZIP archive.
        """
        store = locate(store)
        check_rewritable(store)
        with writing(store):
            check_writable(store, mode)
            history = {} if self.history is None else {_HISTORY: _history_digest(self.history)}
            with replacing(store) as place:
                write_arrays(place, "", self.arrays, {**self.description, **history})
                if self.history is not None:
                    whole = sealed(self.history)
                    whole.to_zarr(place, group="history", mode="w", zarr_format=3, consolidated=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return ("xdan.Network", self.digest)

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self._short_parameters().items())
        score = self.description.get("training", {}).get("validation_rmse")
        validation = "" if score is None else f", {self._score_name} {score:.3f}"
        weights = sum(value.size for value in self.arrays.values())
        return f"<xdan.Network {self.description['name']}({inside}): {weights} weights{validation}>"

    @property
    def _score_name(self) -> str:
        """Name of the score of the training's validations; a training without the truth compares innovations."""
        return str(self.description["training"].get("validation_score", "validation RMSE"))

    def _short_parameters(self) -> dict[str, Any]:
        """Parameters of the architecture; only names for fields and for the networks of a committee."""
        parameters = {**self.description["parameters"]}
        if isinstance(parameters.get("space"), Mapping):
            parameters["space"] = [field["name"] for field in parameters["space"]["fields"]]
        if isinstance(parameters.get("networks"), Sequence):
            parameters["networks"] = [one["name"] for one in parameters["networks"]]
        return parameters

    def _repr_html_(self) -> str:
        training = self.description.get("training", {})
        told = ("objective", "window", "batch", "steps", "epochs", "minutes", "seed", "interrupted", "stopped_by")
        rows: list[tuple[str, Any]] = [*self._short_parameters().items()]
        rows += [("weights", sum(value.size for value in self.arrays.values()))]
        rows += [("state's dims", ", ".join(self.description.get("state_dims", ())))]
        rows += [(f"training: {name}", training[name]) for name in told if training.get(name) is not None]
        if (score := training.get("validation_rmse")) is not None:
            rows.append((f"training: {self._score_name}", f"{score:.3f}"))
        return html_table(f"xdan.Network {self.description['name']}", rows)


def _check_climate(of_what: str, observation: Array, mean: float, std: float, error_variance: float) -> None:
    """Refuse observations of one field whose climate is not that of the training."""
    seen = observation[np.isfinite(observation)]
    if seen.size < _LEAST_SEEN:
        return
    expected = math.hypot(std, math.sqrt(error_variance))
    low, middle, high = np.quantile(seen, [0.16, 0.5, 0.84])  # a few outliers do not change quantiles
    deviation = float(high - low) / 2
    if not std / 3 < deviation < 3 * expected or abs(float(middle) - mean) > 3 * expected:
        raise ValueError(
            f"the network was trained on states{of_what} of mean {mean:.3g} and deviation {std:.3g}; the observations "
            f"have {float(middle):.3g} and {deviation:.3g}: bring the record to the units of the training, or "
            "train a network on it"
        )


def committee(networks: Iterable[Network]) -> Network:
    """Make a network whose analysis is the mean of the analyses of trained networks. It can be trained further.

    A committee among them stands for its networks. All networks have equal weights.

    Parameters
    ----------
    networks : iterable of Network
        At least two networks of one forecast with equal state dims. Their increments must be in one unit: their first
        trainings had equal observation errors. Either all networks give a spread, or none does. If they do, the
        committee gives the spread of the mixture of their Gaussians (`xdan.Committee`).

    Returns
    -------
    Network
        The committee. Its memory is the memory of all networks, one after another. Its description holds the training
        of each network as "committee", and after further training under "before". It has no history.

    Raises
    ------
    TypeError
        If a value is no trained network.
    ValueError
        If the networks do not fit one another.

    Warns
    -----
    XdanWarning
        If, by their descriptions, the networks were trained with different intervals, observing networks or dynamics.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> architecture = xdan.ResidualCNN(filters=4, blocks=1)
    >>> settings = {"steps": 2, "window": 4, "batch": 2, "progress": False}
    >>> first, second = (ds.dan.train(architecture, seed=seed, **settings) for seed in (0, 1))
    >>> xdan.committee([first, second]).description["name"]
    'committee'
    """
    try:
        networks = list(networks)
    except TypeError:
        raise TypeError(f"networks={shown(networks)}: expected a list of trained networks") from None
    for one in networks:
        if not isinstance(one, Network):
            raise TypeError(f"networks= holds a {type(one).__name__}: expected trained networks, as train() gives")
    dims = {one.state_dims for one in networks}
    errors = {tuple(np.ravel(one.arrays["error_std"]).tolist()) for one in networks}
    first, *others = sorted(errors) or [()]
    # For a field that is not observed, each training estimates the error scale from states.
    alike = all(len(one) == len(first) and np.allclose(one, first, rtol=_SAME_ERROR, atol=0.0) for one in others)
    if len(dims) > 1 or not alike:
        raise ValueError(
            f"networks for states with dims {sorted(dims)} and observation errors of {sorted(errors)}: expected the "
            "same for all; train them alike"
        )
    if unlike := disagreements([one.description for one in networks]):
        warn(
            f"the committee's networks were trained in other settings ({'; '.join(unlike)}), and one analysis is made "
            "of all: expected one setting; train them alike, or train the committee on, in the setting that it is for",
        )
    modules = [part for one in networks for part in networks_of(one.module())]
    together = Committee(modules)
    mean, std = (np.mean([one.arrays[n] for one in networks], 0).tolist() for n in ("state_mean", "state_std"))
    # Of the committee itself: each of its networks keeps its normalisation.
    AnalysisNetwork.normalise(together, mean, std, networks[0].arrays["error_std"].tolist())
    training = {"committee": [one.description["training"] for one in networks]}
    return Network.from_module(together, networks[0].state_dims, training)


def _check_alike(one: StateSpace, other: StateSpace) -> None:
    """Refuse another space if its fields or the kinds of its geometries differ."""

    def fields(space: StateSpace) -> list[tuple[str, ...]]:
        kinds = [(field.geometry.name, getattr(field.geometry, "grid", "")) for field in space]
        return [
            (field.name, field.units, *(word for word in kind if word))
            for field, kind in zip(space, kinds, strict=True)
        ]

    def inputs(space: StateSpace) -> list[str]:
        return [one_input.name for one_input in space.inputs]

    for words, part in (("fields (name, units, geometry)", fields), ("fixed inputs", inputs)):
        if part(one) != part(other):
            raise ValueError(f"another space has the {words} {part(other)}: expected {part(one)}, as in training")


def _method(network: Network, dtype: torch.dtype, device: str) -> DataAssimilationNetwork:
    methods = _methods.setdefault(network, {})
    if (dtype, device) not in methods:
        methods[dtype, device] = method_of(network.module(dtype, device).requires_grad_(False))
    return methods[dtype, device]


@checks_keywords
def open_network(store: StoreLike, module: nn.Module | Sequence[nn.Module] | None = None) -> Network:
    """Open a network that `Network.to_zarr` saved; nothing is unpickled, imported or executed.

    Parameters
    ----------
    store : path, Zarr store, or name
        A store that `Network.to_zarr` wrote. A name in `SHIPPED` opens a network that comes with xdan, if no store lies
        at a path with this name. A folder with other files is no store.
    module : torch.nn.Module, or sequence of them, optional
        Only for a network around a torch module of yours (`xdan.ModuleNetwork`): an instance of the module's class,
        made with the values that it had in the training. A copy of this instance gets the weights. If the network holds
        several modules, as a committee does, pass one instance for all of them, or a list.

    Returns
    -------
    Network
        The network, frozen.

    Raises
    ------
    FileNotFoundError
        If the store does not exist.
    TypeError
        If `module` is no torch module.
    ValueError
        If the store holds no network, the network's name is not registered, or the store was cut short. If the store
        holds weights of a torch module, and `module` is missing, has another class or other tensors, or makes other
        analyses.

    Warns
    -----
    XdanWarning
        If the module's class has the name that was saved, but stands in another file.

    Examples
    --------
    >>> import xdan
    >>> xdan.open_network("lorenz96-single").description["name"]  # one that comes with xdan
    'kalman-cnn'
    """
    if isinstance(store, str) and store in SHIPPED and not (Path(store).is_file() or has_root(Path(store))):
        store = shipped_store(store)
    store = locate(store)
    try:
        description, shapes = read_description(store, "")
    except FileNotFoundError as error:
        near = perhaps(Path(str(store)).stem, SHIPPED)
        raise FileNotFoundError(f"{error}; networks that come with xdan are {list(SHIPPED)}{near}") from None
    _check_description(description, store)
    prototype = _with_modules(description, module, shapes, store)
    if prototype is None:
        network_of_shapes(description["name"], description["parameters"], shapes)  # before any array is read
    arrays, description = read_arrays(store, "")
    expected_history = description.pop(_HISTORY, None)
    history = _read_history(store, expected_history)
    network = Network(description, arrays, history, prototype)
    if bad := sorted(name for name, value in network.arrays.items() if not np.isfinite(value).all()):
        raise ValueError(f"{store}: the arrays {bad} hold values that are not finite: expected finite weights")
    made = network.module()  # shapes are checked now, not in the middle of a long run
    if prototype is not None:
        _check_seen(network, made, store)
    return network


def shipped_store(name: str) -> Path:
    """Store of a network that comes with xdan."""
    return _TRAINED / f"{name}.zarr"


def _with_modules(
    description: Mapping[str, Any], module: Any, shapes: Mapping[str, tuple[int, ...]], store: StoreLike
) -> AnalysisNetwork | None:
    """The network around the user's modules that a description names; None if it names no module."""
    names = named_modules(description)
    if not names:
        if module is not None:
            raise ValueError(
                f"{store} holds the network {shown(description['name'])}, which opens by itself: expected no module="
            )
        return None
    if module is None:
        raise ValueError(
            f"{store} holds weights of the torch module {shown(names[0])}, and no code: expected module= with an "
            f"instance of that class, made as in the training: {how_to_open(names, store)}"
        )
    prototype = with_modules(description, module, shapes).eval()
    for before, now in moved(description, prototype):
        warn(
            f"{store} holds weights of {before}, and module= is of {now}: expected one class. Go on if the class was "
            "moved to another file",
        )
    return prototype


def _check_seen(network: Network, made: AnalysisNetwork, store: StoreLike) -> None:
    """Refuse modules that make other analyses with these weights than the saved modules made."""
    kept, parts = network.description.get("modules"), module_networks(made)
    prototype = network.prototype
    if not isinstance(kept, list) or len(kept) != len(parts) or prototype is None:
        raise ValueError(f"{store} has modules={shown(kept)}: expected a list of {len(parts)}, one for each module")
    for part, mine, one in zip(parts, module_networks(prototype), kept, strict=True):
        part.check_seen(one)
        mine.sites = part.sites


def _check_description(description: Mapping[str, Any], store: StoreLike) -> None:
    """Refuse a description that does not describe a network in this format."""
    if "parameters" not in description or "name" not in description:
        raise ValueError(
            f"{store} holds no network; found a description with {sorted(description)}, expected name and parameters"
        )
    read_format("network", description.get("format"), str(store))
    kinds = {"name": str, "parameters": dict, "state_dims": list, "training": dict}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise ValueError(f"{store} has {key}={shown(description.get(key))}: expected a {kind.__name__}")


def _history_digest(history: xr.Dataset) -> str:
    """Digest of a history's values."""
    return digest(*(part for name in sorted(map(str, history.variables)) for part in (name, history[name].to_numpy())))


def _read_history(store: StoreLike, expected: str | None) -> xr.Dataset | None:
    """The history of the training; None if it was not kept."""
    try:
        group = zarr.open_group(store, path="history", mode="r")
    except (FileNotFoundError, GroupNotFoundError):
        if expected is not None:
            raise ValueError(f"{store} was cut short: its history is missing; {_AGAIN}") from None
        return None
    except Exception as reason:
        raise ValueError(f"{store}: the history is damaged: {reason}; {_AGAIN}") from None
    try:
        for name, array in group.arrays():
            # Histories of early versions leave out chunks with nothing but zeros.
            missing = expected is not None and array.nchunks_initialized < array.nchunks
            if array.size > _LONGEST_HISTORY or missing:
                raise ValueError(f"{name!r} has {array.size} values, not all of which are there")
        history: xr.Dataset = xr.open_zarr(store, group="history", consolidated=False, chunks=None).load()
    except Exception as reason:
        raise ValueError(f"{store}: the history was cut short or changed: {reason}; {_AGAIN}") from None
    history.attrs.pop(WHOLE, None)
    if expected is not None and _history_digest(history) != expected:
        raise ValueError(f"{store}: the history was changed: its digest does not match; {_AGAIN}")
    return history
