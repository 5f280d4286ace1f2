"""The public contracts: check a form, a rule, a space or a starting point of your own as ours are checked."""

from .forms import check_parameterization
from .inits import check_init
from .rules import check_rule
from .spaces import check_space

__all__ = ["check_init", "check_parameterization", "check_rule", "check_space"]
