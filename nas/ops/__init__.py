"""The building blocks: importing a family's file registers it; that line is all a new family needs here."""

from nas.ops import bottleneck, g_ghost, ghost, gpunet, heads, mbconv, ran, rep, residual  # noqa: F401
from nas.ops.registry import Block, Narrow, build, check, deployed, families, family, register, sliced, take_width

__all__ = ["Block", "Narrow", "build", "check", "deployed", "families", "family", "register", "sliced", "take_width"]
