"""The oracle: every mode of cutefp4 in plain PyTorch, bit for bit, on any device.

It is written independently of the kernels and is the reference that they are tested against.
"""

from cutefp4.reference.quantize import RSR_OFFSETS_PER_CALL, quantize, stack

__all__ = ["RSR_OFFSETS_PER_CALL", "quantize", "stack"]
