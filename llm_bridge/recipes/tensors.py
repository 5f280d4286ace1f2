"""Updates of all layers that are slices of one low-rank tensor: the arrays of the other modes are shared."""

from __future__ import annotations

from lowrank_sp.parameterizations import CoreChain, DiagonalCore, HeadCP, MixedCore, TrainSlice, TreeSlice

from ..recipe import by_block, by_shape, by_type, everywhere, register
from ..starts import ByArray, Constant, Fan, Normal
from .basic import LORA
from .shared import DENSELORA, by_inputs, by_outputs

CP = register(
    LORA.but(
        "cp",
        cite="survey2026sp",
        covers=("P70",),
        form=DiagonalCore,
        init=ByArray((("left", Fan(-1)), ("values", Constant(0.0)), ("right", Fan(-2)))),
        shares=(("left", by_shape), ("right", by_shape)),
        note="A canonical polyadic tensor of all layers of a shape.",
    )
)
LORTA = register(
    LORA.but(
        "lorta",
        cite="hounie2024lorta",
        covers=("P71", "P72"),
        form=HeadCP,
        init=ByArray(
            (
                ("heads", Normal()),
                ("left", Fan(-1)),
                ("layer", Constant(0.0)),
                ("module", Constant(1.0)),
                ("right", Fan(-2)),
            )
        ),
        shares=(
            ("heads", by_outputs),
            ("left", by_outputs),
            ("layer", by_block),
            ("module", by_type),
            ("right", by_inputs),
        ),
        note="Five modes: heads, rows of a head, blocks, types of layers, inputs. The heads are the largest divisor up "
        "to the root of the outputs. CaRA is the same tensor with a second one for the other layers, which here "
        "follows from their shapes.",
    )
)
LOTR = register(
    DENSELORA.but(
        "lotr",
        cite="bershatsky2024lotr",
        covers=("P74",),
        shares=(("left", by_shape), ("right", by_shape)),
        note="Tucker-2: a core for every layer. The algebra of 'denselora', shared by shape; FacT-TT as published, "
        "with the layers in the middle of the train, is the same again.",
    )
)
FACT_TK = register(
    LORA.but(
        "fact-tk",
        cite="jie2023fact",
        covers=("P73",),
        form=MixedCore,
        init=ByArray((("left", Fan(-1)), ("cores", Fan(-1)), ("weights", Constant(0.0)), ("right", Fan(-2)))),
        shares=(("left", by_shape), ("cores", by_shape), ("right", by_shape)),
        note="Tucker-3 with equal ranks.",
    )
)
FACT_TT = register(
    LORA.but(
        "fact-tt",
        cite="survey2026sp",
        covers=("P75", "P76"),
        form=TrainSlice,
        init=ByArray((("left", Fan(-1)), ("middle", Fan(-2)), ("weights", Constant(0.0)))),
        shares=(("left", by_shape), ("middle", by_shape)),
        note="The train of the survey, outputs - inputs - layers, which costs in r^2 parameters; see 'lotr' for the "
        "published order.",
    )
)
METATT = register(
    LORA.but(
        "metatt",
        cite="lopez2025metatt",
        covers=("P78",),
        form=CoreChain,
        init=ByArray((("left", Constant(0.0)), ("layer", Fan(-1)), ("module", Fan(-1)), ("right", Fan(-2)))),
        shares=(("left", by_outputs), ("layer", by_block), ("module", by_type), ("right", by_inputs)),
        note="Reconstructed: outputs - blocks - types of layers - inputs; one outer core for every size.",
    )
)
HIERARCHICAL_TUCKER = register(
    LORA.but(
        "hierarchical-tucker",
        cite="survey2026sp",
        covers=("P79",),
        form=TreeSlice,
        init=ByArray(
            (
                ("left", Fan(-1)),
                ("right", Fan(-2)),
                ("cores", Fan(-1)),
                ("root", Fan(-1)),
                ("joint", Fan(-1)),
                ("block", Constant(0.0)),
                ("module", Constant(1.0)),
            )
        ),
        shares=(
            ("left", by_outputs),
            ("right", by_inputs),
            ("cores", everywhere),
            ("root", everywhere),
            ("joint", everywhere),
            ("block", by_block),
            ("module", by_type),
        ),
        note="Reconstructed, since the survey only names it: a balanced tree of blocks, types of layers, outputs and "
        "inputs, with one outer core for every size.",
    )
)
