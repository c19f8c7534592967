"""What models with a learned part have in common: a tendency network in a state's dtype, and its origin."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import shown
from ..tendencies import TendencyNetwork

WEIGHTS = "the weights are in a store of their own: pass dynamics=xdan.open_dynamics(store)"


class TendencyWeights:
    """A tendency network that models call. Its weights are frozen, or are being trained.

    Parameters
    ----------
    network : TendencyNetwork
        If frozen, the network is copied, and works in the dtype and on the device of each state.
    live : bool
        Whether the network is used without a copy, so that gradients reach its weights. Otherwise it is frozen.

    Raises
    ------
    TypeError
        If `network` is not a tendency network.
    ValueError
        If weights are not finite.
    """

    def __init__(self, network: Any, live: bool = False) -> None:
        if not isinstance(network, TendencyNetwork):
            raise TypeError(
                f"network={shown(network)}: expected a tendency network, such as xdan.LocalPolynomial() or "
                "xdan.QuadraticCNN(); an analysis network makes increments from observations, and is no part of a model"
            )
        self.live = live
        self.network = network if live else copy.deepcopy(network).eval().requires_grad_(False)
        state = network.state_dict()
        if bad := sorted(name for name, value in state.items() if not live and not bool(value.isfinite().all())):
            raise ValueError(f"the weights {bad} of the network hold values that are not finite: expected finite ones")
        self.digest = "" if live else network.digest()
        self._held: dict[tuple[torch.dtype, torch.device], nn.Module] = {}

    def __call__(self, x: Tensor, dims: int) -> Tensor:
        """Tendency g of states (..., *shape) with `dims` dims, in the states' shape."""
        flat = x.reshape(-1, *x.shape[x.ndim - dims :]).flatten(1)
        answer: Tensor = self._like(x)(flat).reshape(x.shape)
        return answer

    def description(self) -> dict[str, Any]:
        """Plain JSON: the registered name, the parameters and the digest of the weights."""
        network = self.network
        return {"name": network.name, "parameters": network.config(), "digest": self.digest}

    def _like(self, x: Tensor) -> nn.Module:
        """The network in a tensor's dtype and on its device. It is kept, because every step of a forecast needs it."""
        if self.live:
            return self.network
        key = x.dtype, x.device
        if key not in self._held:
            self._held[key] = copy.deepcopy(self.network).to(dtype=x.dtype, device=x.device)
        return self._held[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}


def checked_provenance(value: Any) -> dict[str, Any]:
    """Check a description of the origin of a learned part, as plain JSON.

    Raises
    ------
    TypeError
        If it is not a mapping from names to plain values.
    """
    if value is None:
        return {}
    try:
        plain = json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        plain = None
    if not isinstance(value, Mapping) or not isinstance(plain, dict):
        raise TypeError(f"provenance={shown(value)}: expected a dict of plain JSON values")
    return plain
