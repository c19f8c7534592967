"""What long work says of itself while it goes on, by Python's logging: nothing is printed unless a user asks for it."""

from __future__ import annotations

import logging

logging.getLogger("xdan").addHandler(logging.NullHandler())

TRAINING = logging.getLogger("xdan.training")
"""Validations, resumptions and ends of trainings at INFO; saves of checkpoints and returns to the best at DEBUG."""

TUNING = logging.getLogger("xdan.tuning")
"""Every candidate with its score, and the values that were chosen, at INFO."""

RUNS = logging.getLogger("xdan.runs")
"""Blocks of runs, cells of sweeps and iterations of estimates as they are done, and resumptions, at INFO."""
