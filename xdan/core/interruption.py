"""Ctrl-C during a training: it is noted, and the training ends between two steps."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a training without a result. The exception keeps the network.

    Parameters
    ----------
    text : str
        What was interrupted, and how to go on.
    network : Network or TendencyNetwork
        The network with the best weights until then; before the first validation, with its last weights. `xdan.train`
        and `xdan.calibrate` give a trained `Network`; `xdan.train_surrogate` and `xdan.learn_correction` give the
        network of the model.

    Examples
    --------
    >>> import xdan
    >>> network = xdan.ResidualCNN(filters=4, blocks=1)
    >>> try:
    ...     raise xdan.TrainingInterrupted("interrupted at step 3 of 9", network)  # as a training does at Ctrl-C
    ... except xdan.TrainingInterrupted as stop:
    ...     print(stop, stop.network is network)
    interrupted at step 3 of 9 True
    """

    def __init__(self, text: str, network: Any) -> None:
        super().__init__(text)
        self.network = network

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.network)


KEPT_TEXT = (
    "The network with the best weights until then is kept: `except xdan.TrainingInterrupted as stop: net = "
    "stop.network`, or in IPython `import sys; net = sys.last_value.network`"
)


class Interruption:
    """Let Ctrl-C end a training between two steps. There the weights and the checkpoint fit each other.

    The first Ctrl-C is noted, and a second one raises KeyboardInterrupt at once. Nothing changes outside the main
    thread, or if the process handles Ctrl-C in another way than Python's default.

    Attributes
    ----------
    noted : bool
        Whether there was a Ctrl-C.
    """

    def __init__(self) -> None:
        self.noted = False
        self._listening = False

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._listening = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _note(self, *_: Any) -> None:
        self.noted = True
        self._leave()

    def _leave(self) -> None:
        if self._listening:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._listening = False
