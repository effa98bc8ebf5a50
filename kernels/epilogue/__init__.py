"""Device code of the epilogue tree: what happens to the accumulators before they reach memory."""
