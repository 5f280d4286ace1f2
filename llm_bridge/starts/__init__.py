"""Where the factors of an adapter start: at zero, from the pretrained weight, from gradients or from activations."""

from .activation import ContextMinor, ContextPrincipal, ExplainedVariance
from .base import Start, StartSite
from .gradient import Compressed, GradientFrame, GradientSpectrum, SplitFrame
from .random import Default, Gaussian, NonZero, OrthonormalIdentity, Reversed, ZeroLeft
from .spectrum import dominant_svd, leading, minor_svd
from .weight import LeadingColumns, Minor, Principal, Sketch, SubBlocks, Triplets

__all__ = [
    "Compressed",
    "ContextMinor",
    "ContextPrincipal",
    "Default",
    "ExplainedVariance",
    "Gaussian",
    "GradientFrame",
    "GradientSpectrum",
    "LeadingColumns",
    "Minor",
    "NonZero",
    "OrthonormalIdentity",
    "Principal",
    "Reversed",
    "Sketch",
    "SplitFrame",
    "Start",
    "StartSite",
    "SubBlocks",
    "Triplets",
    "ZeroLeft",
    "dominant_svd",
    "leading",
    "minor_svd",
]
