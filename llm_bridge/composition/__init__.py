"""One adapter out of several trained ones, and adapters held against other models, without training."""

from .choosing import layerwise_choice
from .matching import Matching, output_matching
from .safety import Leading, Normalized, Projector, SafetyReport, safe_projection
from .search import SearchReport, search_weights
from .similarity import layer_similarity, linear_cka, weight_similarity

__all__ = [
    "Leading",
    "Matching",
    "Normalized",
    "Projector",
    "SafetyReport",
    "SearchReport",
    "layer_similarity",
    "layerwise_choice",
    "linear_cka",
    "output_matching",
    "safe_projection",
    "search_weights",
    "weight_similarity",
]
