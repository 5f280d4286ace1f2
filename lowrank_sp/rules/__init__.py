"""All update rules, and the registry over which their contract tests run."""

from .accumulate import Adam, Conjugate, Momentum
from .base import Chain, Mixing, PerFactor, Plain, Rule, chain, check_needs, mixed
from .geometry import Canonical, Landing, retract, retract_qr, translate
from .penalty import Orthogonality, Shrinkage
from .precondition import Horizontal, LossDamped, Refactored, RefactoredScalar, Scaled
from .unmagnified import Unmagnified

__all__ = [
    "RULES",
    "Adam",
    "Canonical",
    "Chain",
    "Conjugate",
    "Horizontal",
    "Landing",
    "LossDamped",
    "Mixing",
    "Momentum",
    "Orthogonality",
    "PerFactor",
    "Plain",
    "Refactored",
    "RefactoredScalar",
    "Rule",
    "Scaled",
    "Shrinkage",
    "Unmagnified",
    "chain",
    "check_needs",
    "mixed",
    "retract",
    "retract_qr",
    "translate",
]

RULES: dict[str, Rule] = {
    "plain": Plain(),
    "scaled": Scaled(),
    "scaled-damped": Scaled(damping=0.1),
    "loss-damped": LossDamped(),
    "refactored": Refactored(),
    "refactored-scalar": RefactoredScalar(),
    "horizontal": Horizontal(),
    "momentum": Momentum(),
    "adam": Adam(),
    "conjugate": Conjugate(Scaled()),
    "landing": Landing(),
    "landing-scaled": Landing(damping=0.0),
    "scaled+momentum": chain(Scaled(), Momentum()),
    "refactored+momentum": chain(Refactored(), Momentum()),
    "refactored+adam": chain(Refactored(), Adam()),
    "scaled+adam": chain(Scaled(), Adam()),
    "canonical": Canonical(),
    "orthogonality": Orthogonality(0.01),
    "adam+orthogonality": chain(Adam(), Orthogonality(0.01)),
    "unmagnified": Unmagnified(),
}
