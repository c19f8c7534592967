"""The module `xdan.records.store` under its old name."""

import sys

from .records import store

sys.modules[__name__] = store
