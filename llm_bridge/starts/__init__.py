"""Where the factors of an adapter start: at zero, from the pretrained weight, from gradients or from activations."""

from .activation import ContextMinor, ContextPrincipal, ExplainedVariance
from .base import Start, StartSite
from .gradient import Compressed, GradientFrame, GradientSpectrum, SplitFrame
from .random import Default, Gaussian, NonZero, OrthonormalIdentity, Reversed, ZeroLeft
from .segments import Segments
from .spectrum import dominant_svd, leading, minor_svd
from .structured import (
    ByArray,
    ColumnsOfWeight,
    Constant,
    Fan,
    GradientPlaces,
    LargestPlaces,
    Normal,
    NormedDirections,
    SingularFrame,
    SubtractedByArray,
    TriangularFrame,
    VanishingZeros,
    WeightCore,
)
from .weight import LeadingColumns, Minor, Principal, Sketch, SubBlocks, Triplets

__all__ = [
    "ByArray",
    "ColumnsOfWeight",
    "Compressed",
    "Constant",
    "ContextMinor",
    "ContextPrincipal",
    "Default",
    "ExplainedVariance",
    "Fan",
    "Gaussian",
    "GradientFrame",
    "GradientPlaces",
    "GradientSpectrum",
    "LargestPlaces",
    "LeadingColumns",
    "Minor",
    "NonZero",
    "Normal",
    "NormedDirections",
    "OrthonormalIdentity",
    "Principal",
    "Reversed",
    "Segments",
    "SingularFrame",
    "Sketch",
    "SplitFrame",
    "Start",
    "StartSite",
    "SubBlocks",
    "SubtractedByArray",
    "TriangularFrame",
    "Triplets",
    "VanishingZeros",
    "WeightCore",
    "ZeroLeft",
    "dominant_svd",
    "leading",
    "minor_svd",
]
