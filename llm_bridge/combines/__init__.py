"""Ways in which an update meets the weight of a layer."""

from .base import Additive, Combine, Formed, MagnitudeDirection, TimesBase, accumulate
from .cheaper import Cheaper
from .composed import Composed
from .directed import Directed
from .entrywise import Entrywise
from .one_sided import OneSided
from .sampled import Placed, Waves
from .splined import Splined

__all__ = [
    "Additive",
    "Cheaper",
    "Combine",
    "Composed",
    "Directed",
    "Entrywise",
    "Formed",
    "MagnitudeDirection",
    "OneSided",
    "Placed",
    "Splined",
    "TimesBase",
    "Waves",
    "accumulate",
]
