"""Dynamic operations by name."""

from __future__ import annotations

from hybridgraph.config import OPS as OP_NAMES
from hybridgraph.engine.ops.protocol import DynamicOps
from hybridgraph.errors import UserError


def dynamic_ops(name: str) -> DynamicOps:
    """The implementation called ``name``; each is imported, and compiled, only when it is asked for."""
    if name == "native":
        from hybridgraph.engine.ops.native import OPS
    elif name == "torchscript":
        from hybridgraph.engine.ops.torchscript import OPS
    elif name == "inductor":
        from hybridgraph.engine.ops.inductor import OPS
    elif name == "fused":
        from hybridgraph.engine.ops.fused import OPS
    else:
        raise UserError(f"unknown dynamic operations '{name}': one of {', '.join(OP_NAMES)}")
    return OPS
