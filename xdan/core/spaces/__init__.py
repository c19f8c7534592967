"""Spaces: the fields of a state, and the geometries where they live."""

from .base import Geometry, geometry_from_json, geometry_to_json, register_geometry
from .components import Components
from .coordinates import MOST_COMPONENTS, Coordinate
from .interval import Interval
from .plane import Plane
from .ring import Ring
from .sphere import Sphere
from .state import STATE, Field, FixedInput, StateSpace
from .unstated import Unstated

__all__ = [
    "MOST_COMPONENTS",
    "STATE",
    "Components",
    "Coordinate",
    "Field",
    "FixedInput",
    "Geometry",
    "Interval",
    "Plane",
    "Ring",
    "Sphere",
    "StateSpace",
    "Unstated",
    "geometry_from_json",
    "geometry_to_json",
    "register_geometry",
]
