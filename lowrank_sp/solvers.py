"""The named solvers: each is one composition of rule, step policy, move and order of blocks."""

from __future__ import annotations

from typing import Any

from .coverage import covers
from .descent import AlternatingLeastSquares, Descent
from .parameterizations import FixedRank, PoLAR, orthographic
from .rules import (
    Conjugate,
    Horizontal,
    Landing,
    LossDamped,
    Plain,
    Refactored,
    RefactoredScalar,
    Scaled,
    retract,
    retract_qr,
    translate,
)
from .rules.step import BarzilaiBorwein, ExactLineSearch, parse_step

__all__ = [
    "ALS",
    "GD",
    "SOLVERS",
    "AltGD",
    "AltScaledGD",
    "LandingGD",
    "LoRAPro",
    "PrecGD",
    "RefLoRA",
    "RefLoRAScalar",
    "RiemannianCG",
    "RiemannianGD",
    "ScaledCG",
    "ScaledGD",
]

OUTER_THEN_CORE = (("left", "right"), ("core", "values"))
RETRACTIONS = {"projection": retract, "orthographic": orthographic, "polar": retract, "qr": retract_qr}


def _retraction(name: str) -> Any:
    if name not in RETRACTIONS:
        raise ValueError(f"retraction must be one of {', '.join(RETRACTIONS)}, got {name!r}")
    return RETRACTIONS[name]


@covers("O01")
def GD(step_size: Any = "auto") -> Descent:
    """Gradient descent on all factors at once: ``X - eta G Y``, ``Y - eta G^H X``, both from the old point.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is Barzilai-Borwein, safeguarded by the exact line search. A constant near ``0.5 / s_1``
        suits balanced starts.
    """
    return Descent(Plain(), (parse_step(step_size, BarzilaiBorwein()),), name="GD")


@covers("O02")
def AltGD(step_size: Any = "auto") -> Descent:
    """Alternating gradient descent: each factor from the gradient at the newest point.

    Two gradient evaluations per iteration.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is the exact step of each block.

    Notes
    -----
    Source: equation (16) of :cite:`survey2026sp`; :cite:`ward2023altgd`.
    """
    return Descent(Plain(), (parse_step(step_size),), "each", name="AltGD")


@covers("O04")
def ScaledGD(step_size: Any = "auto", damping: float = 0.0) -> Descent:
    """Scaled gradient descent, free of the condition number.

    Parameters
    ----------
    step_size : "auto", float or step policy
        Exact line search by default; constants up to 2/3 contract, and 1/2 is the one constant with
        quadratic convergence from a Nystrom start of a factorization.
    damping : float
        Added to the Gram matrices, in their units: ScaledGD(lambda) for an over-estimated rank.

    Notes
    -----
    Source: :cite:`tong2021scaledgd`; damped :cite:`xu2023power`. Undamped and with a fixed step it blows up
    from tiny random starts (the inverse Gram matrix is huge there): use a Nystrom or spectral start, damping,
    ``"auto"``, or `AltScaledGD`.
    """
    return Descent(Scaled(float(damping)), (parse_step(step_size),), name="ScaledGD")


@covers("O05")
def AltScaledGD(step_size: Any = "auto", damping: float = 0.0) -> Descent:
    """Alternating scaled gradient descent; steps in (0, 2), and step 1 solves a factorization in one sweep.

    The safest scaled method: it needs neither a small step nor a good start. Two gradient evaluations per
    iteration.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is the exact step of each block.
    damping : float
        Added to the Gram matrices, in their units.

    Notes
    -----
    Source: :cite:`jia2023altscaledgd`.
    """
    return Descent(Scaled(float(damping)), (parse_step(step_size),), "each", name="AltScaledGD")


@covers("O04")
def ScaledCG(step_size: Any = "auto", damping: float = 0.0) -> Descent:
    """Conjugate gradients in the metric of ScaledGD, with exact line search (Polak-Ribiere+).

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is the exact line search.
    damping : float
        Added to the Gram matrices, in their units.
    """
    return Descent(Conjugate(Scaled(float(damping))), (parse_step(step_size),), name="ScaledCG")


@covers("O04", "R28")
def PrecGD(step_size: Any = "auto", factor: float = 0.5) -> Descent:
    """ScaledGD with damping ``factor * sqrt(loss)``: the default when the rank is over-estimated.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is the exact line search.
    factor : float
        Of the damping.

    Notes
    -----
    Source: :cite:`zhang2021precgd`.
    """
    return Descent(LossDamped(float(factor)), (parse_step(step_size),), name="PrecGD")


@covers("O07")
def RefLoRA(step_size: Any = "auto") -> Descent:
    """Gradient descent from the balanced factorization of each point; gauge equivariant, not kappa-free.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is Barzilai-Borwein, safeguarded by the exact line search.

    Notes
    -----
    Source: :cite:`zhang2025reflora`.
    """
    return Descent(Refactored(), (parse_step(step_size, BarzilaiBorwein()),), name="RefLoRA")


@covers("O08")
def RefLoRAScalar(step_size: Any = "auto") -> Descent:
    """RefLoRA that removes the scalar gauge only.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is Barzilai-Borwein, safeguarded by the exact line search.

    Notes
    -----
    Source: :cite:`zhang2025reflora`.
    """
    return Descent(RefactoredScalar(), (parse_step(step_size, BarzilaiBorwein()),), name="RefLoRAScalar")


@covers("O09", "O32")
def LoRAPro(step_size: Any = "auto", damping: float = 0.0) -> Descent:
    """The factor step whose matrix step is the projected full gradient, lifted horizontally.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is the exact line search.
    damping : float
        Added to the Gram matrices, in their units.

    Notes
    -----
    Source: :cite:`wang2025lorapro`.
    """
    return Descent(Horizontal(float(damping)), (parse_step(step_size),), name="LoRAPro")


@covers("O10", "O11")
def RiemannianGD(step_size: Any = "auto", core_step_size: Any = "auto", retraction: str = "projection") -> Descent:
    """Riemannian gradient descent in the geometry of the form.

    On `FixedRank` points, and on `BurerMonteiro` starts (which are run as `FixedRank` and converted back):
    gradient descent on the manifold of rank-r matrices. On `PoLAR` and `SVD` points: the update of PoLAR,
    first the orthonormal factors with the polar retraction, then the core from the gradient at the *new*
    factors (the index that :cite:`survey2026sp` misprints in equation (21c)).

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` is Armijo backtracking from the exact minimiser of the straight line, and on `PoLAR` and
        `SVD` points the metric is scaled by the Gram matrix of the core, which frees the count from the
        condition number. A constant step is the plain published update.
    core_step_size : "auto", float or step policy
        For the core of `PoLAR` and `SVD`; 1 is exact for factorization, ``"auto"`` always.
    retraction : {"projection", "orthographic", "polar", "qr"}
        The first two for `FixedRank`, the last two for `PoLAR` and `SVD`; the default means the first of each.

    Notes
    -----
    Source: :cite:`lion2025polar`; fixed rank :cite:`vandereycken2013lrgeomcg`, :cite:`absil2012projection`.
    """
    rule = Scaled() if isinstance(step_size, str) else Plain()
    steps = parse_step(step_size), parse_step(core_step_size)
    return Descent(rule, steps, OUTER_THEN_CORE, _retraction(retraction), "RiemannianGD", FixedRank)


@covers("O10")
def RiemannianCG(step_size: Any = "auto", retraction: str = "projection") -> Descent:
    """Riemannian conjugate gradients (Polak-Ribiere+, projection transport); forms as for `RiemannianGD`.

    On `PoLAR` and `SVD` points all factors move at once, in the metric scaled by the Gram matrix of the core.

    Parameters
    ----------
    step_size : "auto", float or step policy
    retraction : {"projection", "orthographic", "polar", "qr"}
        As for `RiemannianGD`.

    Notes
    -----
    Source: :cite:`vandereycken2013lrgeomcg`.
    """
    return Descent(
        Conjugate(Scaled()),
        (parse_step(step_size),),
        "all",
        _retraction(retraction),
        "RiemannianCG",
        FixedRank,
    )


@covers("O12")
def LandingGD(step_size: Any = "auto", core_step_size: Any = "auto", penalty: float = 0.5) -> Descent:
    """Retraction-free descent on `PoLAR` points: orthonormal factors land, the core follows.

    Parameters
    ----------
    step_size : "auto", float or step policy
        ``"auto"`` minimises the loss plus a share of the squared orthogonality defect along the field,
        exactly, with gradients whitened by the Gram matrix of the core. A constant step follows the plain
        published field and needs ``step_size * penalty * ||core||_F^2 < 1``.
    core_step_size : "auto", float or step policy
    penalty : float
        Pull towards orthonormality, relative to the squared norm of the core.

    Notes
    -----
    A `BurerMonteiro` start is run as `PoLAR` and converted back.
    Source: :cite:`lion2025polar`, :cite:`ablin2022landing`.
    """
    steps = parse_step(step_size, ExactLineSearch(constraint_weight=1.0)), parse_step(core_step_size)
    damping = 0.0 if isinstance(step_size, str) else None
    return Descent(Landing(float(penalty), damping), steps, OUTER_THEN_CORE, translate, "LandingGD", PoLAR)


@covers("O03")
def ALS(ridge: float | str = "auto", rebalance: bool = True) -> AlternatingLeastSquares:
    """Alternating least squares: no step size at all, and the fastest solver of plain completion.

    Parameters
    ----------
    ridge : "auto" or float
        Tikhonov ridge of the block solves, relative to their mean Gram matrix. ``"auto"`` ties it to the
        residual, so it vanishes on exact data (see `AlternatingLeastSquares`); a number is kept constant,
        which regularizes noisy data.
    rebalance : bool
        Rebalance the two factors after every sweep.

    Notes
    -----
    Completion solves every row by its own r x r system, all Gram matrices from one sparse product; other
    problems use conjugate gradients preconditioned by the Gram matrix. Source: :cite:`jain2013altmin`; the
    residual-driven ridge is ours, after the damping of :cite:`zhang2021precgd`.
    """
    if isinstance(ridge, str) and ridge == "auto":
        return AlternatingLeastSquares(rebalance=rebalance)
    if isinstance(ridge, bool) or not (isinstance(ridge, (int, float)) and ridge >= 0):
        raise ValueError(f'ridge must be "auto" or a number that is not negative, got {ridge!r}')
    return AlternatingLeastSquares(cap=0.0, floor=float(ridge), rebalance=rebalance)


SOLVERS: dict[str, Any] = {
    f.__name__: f
    for f in (
        GD,
        AltGD,
        ScaledGD,
        AltScaledGD,
        ScaledCG,
        PrecGD,
        RefLoRA,
        RefLoRAScalar,
        LoRAPro,
        RiemannianGD,
        RiemannianCG,
        LandingGD,
        ALS,
    )
}
