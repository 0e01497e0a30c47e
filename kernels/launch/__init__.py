"""What the Triton kernels share: the compiler, launches, and small device functions."""
