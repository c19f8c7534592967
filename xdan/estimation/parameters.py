"""Parameters of a model, estimated from a record of observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..core.checks import choice, real_array, shown
from ..core.estimation.priors import Priors, read_priors
from ..core.methods import EnsembleMethod, method_by_name
from ..core.methods.base import METHODS
from ..records.record import RecordWords, read
from .augmentation import estimate_by_augmentation
from .parameter_labels import check_parameter_names

KINDS = ("augmented", "likelihood", "em")


def estimate_parameters(ds, dynamics, parameters, method="augmented", *, ensemble="etkf", members=40, walk=0.0, seed=0, store=None, mode="w-", device="auto", progress=True, **words):
    choice("method", method, KINDS)
    labelled = read(ds, dynamics=dynamics, **words)
    priors = read_priors(labelled.setup.dynamics, parameters)
    check_parameter_names(priors)
    filter_ = method_by_name(ensemble, members=members)
    return estimate_by_augmentation(ds, labelled, priors, filter_, torch.full_like(priors.mean, walk), seed=seed, store=store, mode=mode, device=device, progress=progress)
