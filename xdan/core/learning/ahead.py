"""Windows that are made on a GPU while training learns from the previous ones."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields

import torch
from torch import Tensor

from .rollout import Window
from .trainer import Windows


class ReadAhead:
    """Windows of another source. A thread makes the next window in another stream of the GPU.

    A window needs some hundred small kernels. Their launches take as long as the replay of a recorded gradient.

    Parameters
    ----------
    windows : Windows
        The source of windows, on a CUDA device.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows, self.per_epoch = windows, windows.per_epoch
        self._stream = torch.cuda.Stream()
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Window]] | None = None
        self._before = windows.arrays()

    def window(self, index: int) -> Window:
        """Return the window of this index, and start to make the next one."""
        if self._next is None or self._next[0] != index:
            self._next = index, self._thread.submit(self._make, index)
        window = self._next[1].result()
        here = torch.cuda.current_stream()
        here.wait_stream(self._stream)
        for tensor in (getattr(window, field.name) for field in fields(window)):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(here)  # torch must not reuse its memory while this stream reads it
        # The source will be one window ahead of the training. A checkpoint needs its present arrays.
        self._before = {name: value.clone() for name, value in self.windows.arrays().items()}
        self._stream.wait_stream(here)
        self._next = index + 1, self._thread.submit(self._make, index + 1)
        return window

    def _make(self, index: int) -> Window:
        with torch.cuda.stream(self._stream):
            return self.windows.window(index)

    def arrays(self) -> dict[str, Tensor]:
        """What to store, so that a resumed training goes on after the last window that was returned."""
        return self._before

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Resume from stored arrays."""
        self.windows.restore(arrays)
        self._next, self._before = None, arrays

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        self.windows.close()
