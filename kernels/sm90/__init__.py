"""Hopper (sm_90a) kernels: NVFP4 decoded exactly to 16 bits in the kernel, multiplied by wgmma."""
