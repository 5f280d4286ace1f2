"""Ways in which an update meets the weight of a layer."""

from .base import Additive, Combine, Formed, MagnitudeDirection, TimesBase, accumulate
from .cheaper import Cheaper
from .composed import Composed
from .one_sided import OneSided
from .sampled import Placed, Waves

__all__ = [
    "Additive",
    "Cheaper",
    "Combine",
    "Composed",
    "Formed",
    "MagnitudeDirection",
    "OneSided",
    "Placed",
    "TimesBase",
    "Waves",
    "accumulate",
]
