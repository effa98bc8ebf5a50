"""The device code of cutefp4, imported as `cutefp4.kernels`."""
