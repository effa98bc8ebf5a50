"""NVFP4 GEMM for Blackwell (sm_100a, sm_103a): tcgen05 block-scaled MMA with accumulators and scales in tensor
memory."""
