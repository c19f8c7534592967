"""Tendency networks: functions of the state that are added to a model's tendency, or replace it."""

from .base import TendencyNetwork, register_tendency, tendency_by_name, tendency_of_shapes
from .correcting_cnn import CorrectingCNN
from .local_polynomial import LocalPolynomial
from .quadratic_cnn import QuadraticCNN

__all__ = [
    "CorrectingCNN",
    "LocalPolynomial",
    "QuadraticCNN",
    "TendencyNetwork",
    "register_tendency",
    "tendency_by_name",
    "tendency_of_shapes",
]
