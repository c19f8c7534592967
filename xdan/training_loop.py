"""The module `xdan.training.loop` under its old name."""

import sys

from .training import loop

sys.modules[__name__] = loop
