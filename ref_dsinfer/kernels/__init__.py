"""Kernels: C++ for CPUs (compiled by `cpu_kernels`), Triton for GPUs.

Everything here has a plain definition in torch elsewhere, and a test that compares the two. Triton
modules are imported only where a GPU runs them, or a test in Triton's interpreter.
"""
