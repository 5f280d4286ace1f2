"""Models and layers that adapters cannot meet as they are: wrapped ones, and weights that are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from .distributed import unwrapped

if TYPE_CHECKING:
    from .sites import Site

__all__ = ["require_bare", "require_present"]


def require_bare(model: nn.Module) -> None:
    """Raise where a model is wrapped for compilation or data parallelism: its paths would not be those of files.

    Raises
    ------
    ValueError
        That says what to do.
    """
    if unwrapped(model) is not model:
        raise ValueError(
            f"the model is wrapped by {type(model).__name__}; adapters go into the one inside, and optimizers are made "
            "after that: adapt or load first, then compile or parallelize"
        )


def require_present(sites: Iterable[Site]) -> None:
    """Raise where accelerate brings the weights of a layer for each of its calls: adapters read them beside it.

    Raises
    ------
    ValueError
        That names the first of these layers.
    """
    for site in sites:
        hook: Any = getattr(site.layer, "_hf_hook", None)
        if any(getattr(part, "offload", False) for part in getattr(hook, "hooks", (hook,))):
            raise ValueError(
                f"the weights of {site.name} are offloaded by accelerate and only there while the layer runs; load the "
                "model so that it fits (device_map without 'cpu' and 'disk', a smaller dtype), or exclude the layer"
            )
