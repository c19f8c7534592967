"""The module `xdan.records.store` under the name that it had before."""

import sys

from .records import store

sys.modules[__name__] = store
