"""The kernels of the fused forward and of its operations."""
