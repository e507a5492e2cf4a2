"""The operations in Triton, for GPUs; imported only where a call runs on one.

Each file is one operation: a kernel and a function that has the arguments of its reference. With
`TRITON_INTERPRET=1` set before the import they run on CPU tensors, which is how they are tested
without a GPU. They need Triton 3.6 or newer, which CUDA builds of torch bring along.
"""
