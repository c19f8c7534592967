"""H and R: which sites are observed, by which operator, and with which errors."""

from .covariances import is_symmetric as is_symmetric
from .field_sites import FieldSites as FieldSites
from .observations import observe as observe
from .observations import split_observation as split_observation
from .operators import FunctionOperator as FunctionOperator
from .operators import LinearOperator as LinearOperator
from .operators import Operator as Operator
from .positions import InterpolationOperator as InterpolationOperator
from .positions import Positions as Positions
from .positions import deviations_of as deviations_of
from .sites import Sites as Sites
from .system import ObservingSystem as ObservingSystem
