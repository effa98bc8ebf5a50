"""NVFP4 GEMM for Blackwell (sm_100a, sm_103a): block-scaled tcgen05.mma, accumulators and scales in tensor memory."""
