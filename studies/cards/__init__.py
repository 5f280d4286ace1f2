"""Report cards: what any parameterization or update rule promises, keeps, and costs, on one page."""

from studies.cards.build import card

__all__ = ["card"]
