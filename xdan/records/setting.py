"""The setting in which a network was trained, and how a record differs from this setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.checks import shown
from ..core.dynamics import dynamics_to_json
from ..core.observing import FieldSites, Sites
from .blocks import Setup, tensor_to_array
from .schema import Array

_FEW = 0.1  # the largest share of other intervals that is not mentioned
_NEAR_SHARE = 0.25  # the largest difference of the shares of observations that is not mentioned
_NEAR = 0.05  # the largest relative difference of errors or intervals that is not mentioned
# Parameters of a dynamics that do not matter to a trained network, or that are compared elsewhere.
_NOT_COMPARED = frozenset(("sites", "state", "timestep", "spin_up_time", "function", "label", "time_unit"))


def differences(description: Mapping[str, Any], setup: Setup, sites: Sites | FieldSites | None) -> list[str]:
    """Say how a record differs from the training data of a network, as far as the network's description tells.

    Parameters
    ----------
    description : mapping
        Description of the network. For a committee that was not trained together, the training of its first member
        counts.
    setup : Setup
        Set-up of the record.
    sites : Sites, FieldSites or None
        The rule by which the record's sites are observed, if it is known.

    Returns
    -------
    list of str
        One entry for each difference, such as "the interval is 0.1, in training it was 0.05".
    """
    data = training_data(description)
    if data is None:
        return []
    checks = (_dynamics(data, setup), _interval(data, setup), _error(data, setup))
    return [text for texts in (*checks, _observing(data, sites)) for text in texts]


def disagreements(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how the trainings of several networks differ, as far as their descriptions tell.

    Parameters
    ----------
    descriptions : sequence of mapping
        Descriptions of the networks.

    Returns
    -------
    list of str
        One entry for each difference, such as "interval: 0.05, 0.1".
    """
    settings = [_setting(data) for data in map(training_data, descriptions) if data is not None]
    names = sorted({name for setting in settings for name in setting})
    entries = {name: [setting[name] for setting in settings if name in setting] for name in names}
    return [
        f"{name}: {', '.join(dict.fromkeys(text for _, text in pairs))}"
        for name, pairs in entries.items()
        if not all(_alike(value, pairs[0][0]) for value, _ in pairs)
    ]


def _setting(data: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """The setting of a training, by name: each value to compare, and its text for a message."""
    setting: dict[str, tuple[Any, str]] = {}
    for name, key in (("interval", "interval"), ("observation error", "error_std")):
        if (ends := _range(data.get(key))) is not None:
            setting[name] = ends, _text(*ends)
    if isinstance(observing := data.get("observing"), Mapping):
        setting["observed sites"] = dict(observing), _sites(observing)
    dynamics = data.get("endless", data.get("dynamics"))
    if isinstance(dynamics, Mapping) and isinstance(dynamics.get("parameters"), Mapping):
        setting["dynamics"] = dynamics.get("name"), repr(dynamics.get("name"))
        compared = {name: value for name, value in dynamics["parameters"].items() if name not in _NOT_COMPARED}
        setting |= {f"the dynamics' {name}": (value, shown(value)) for name, value in compared.items()}
    return setting


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, or two ranges nearly equal."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(math.isclose(a, b, rel_tol=_NEAR) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def training_data(description: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Description of the data of a network's last training, or None if the network's description does not tell."""
    training = description.get("training")
    while isinstance(training, Mapping) and "data" not in training:
        members = training.get("committee")
        training = members[0] if isinstance(members, list) and members else None
    data = training.get("data") if isinstance(training, Mapping) else None
    return data if isinstance(data, Mapping) else None


def observed_otherwise(description: Mapping[str, Any], observation: Array) -> str:
    """Say that the observed share of the state differs from that in training; "" if the two are nearly equal.

    Parameters
    ----------
    description : mapping
        Description of the network.
    observation : array, shape (R, K, *observations)
        Observations; NaN stands for none.
    """
    data = training_data(description)
    trained = None if data is None else _share(data.get("observing"), math.prod(observation.shape[2:]))
    share = float(np.isfinite(observation).mean())
    if trained is None or abs(share - trained) <= _NEAR_SHARE:
        return ""
    return (
        f"the network sees {share:.0%} of the observations that there may be, in training it saw {trained:.0%}: it may "
        "lose the truth. Compare with baseline('enkf-n'), or train a network on this record with ds.dan.train()"
    )


def _share(observing: Any, size: int) -> float | None:
    """Share of the sites that an observing network observes by its description, or None if this does not tell."""
    if isinstance(observing, (int, float)) and not isinstance(observing, bool):
        return float(observing) if 0 < observing <= 1 else None
    try:
        sites = Sites.from_json(observing)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return sum(sites.counts(size)) / (2 * size)


def validation_innovation(description: Mapping[str, Any]) -> float | None:
    """Mean square innovation of the network on its validation record, in units of R; None if it is not known."""
    training = description.get("training")
    value = training.get("validation_innovation") if isinstance(training, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and 0 < value < math.inf else None


def _dynamics(data: Mapping[str, Any], setup: Setup) -> Iterator[str]:
    trained = data.get("endless", data.get("dynamics"))
    if not isinstance(trained, Mapping) or not isinstance(trained.get("parameters"), Mapping):
        return
    here = dynamics_to_json(setup.dynamics)
    if trained.get("name") != here["name"]:
        yield f"the dynamics is {here['name']!r}, in training it was {trained.get('name')!r}"
        return
    in_training, in_record = trained["parameters"], here["parameters"]
    for name in sorted((set(in_training) & set(in_record)) - _NOT_COMPARED):
        if in_training[name] != in_record[name]:
            yield f"the dynamics has {name}={in_record[name]}, in training it had {in_training[name]}"
    errs, erred = here.get("model_error", 0.0), trained.get("model_error", 0.0)
    if errs != erred:
        yield f"the model errs by {errs} in an interval, in training by {erred}"


def _interval(data: Mapping[str, Any], setup: Setup) -> Iterator[str]:
    trained = _range(data.get("interval"))
    steps = setup.steps[1:]
    if trained is None or not len(steps):
        return
    intervals = steps * setup.dynamics.timestep
    least, most = float(intervals.min()), float(intervals.max())
    other = (intervals < trained[0] * (1 - _NEAR)) | (intervals > trained[1] * (1 + _NEAR))
    if other.mean() > _FEW:  # a few gaps make no other setting
        yield f"the interval is {_text(least, most)}, in training it was {_text(*trained)}"


def _error(data: Mapping[str, Any], setup: Setup) -> Iterator[str]:
    trained = _range(data.get("error_std"))
    if trained is None:
        return
    deviation = np.sqrt(tensor_to_array(setup.observing.error_variance()))
    least, most = float(deviation.min()), float(deviation.max())
    if least < trained[0] * (1 - _NEAR) or most > trained[1] * (1 + _NEAR):
        yield f"the observation error is {_text(least, most)}, in training it was {_text(*trained)}"


def _observing(data: Mapping[str, Any], sites: Sites | FieldSites | None) -> Iterator[str]:
    trained = data.get("observing")
    here = None if sites is None else sites.to_json()
    if isinstance(trained, Mapping) and here is not None and dict(trained) != here:
        yield f"the observed sites are {_sites(here)}, in training they were {_sites(trained)}"


def _sites(description: Mapping[str, Any]) -> str:
    parameters = description.get("parameters")
    if description.get("name") == "fields" and isinstance(parameters, Mapping):
        return "; ".join(f"{name}: {_sites(one)}" for name, one in parameters.items() if isinstance(one, Mapping))
    return ", ".join(f"{k}={v}" for k, v in parameters.items()) if isinstance(parameters, Mapping) else "unknown"


def _range(value: Any) -> tuple[float, float] | None:
    """Smallest and largest value of a number or a list of numbers; None for anything else."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if not numbers.size or not np.isfinite(numbers).all():
        return None
    return float(numbers.min()), float(numbers.max())


def _text(least: float, most: float) -> str:
    return f"{least:.4g}" if math.isclose(least, most, rel_tol=1e-6) else f"{least:.4g} to {most:.4g}"
