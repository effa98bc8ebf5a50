"""Quantisation kernels: amax and cast."""
