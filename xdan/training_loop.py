"""The module `xdan.training.loop` under the name that it had before."""

import sys

from .training import loop

sys.modules[__name__] = loop
