"""The network side's kernels for GPUs, in Triton: one operation a file, each beside its reference in PyTorch.

An operation is a function on tensors, registered as a PyTorch operator (`fastcodec::...`) with a fake implementation,
so that `torch.compile` and the capture of CUDA graphs see it; its `*_reference` has the same signature and defines it.
On tensors of a GPU the kernel runs. On tensors of the CPU the reference does, unless Triton's interpreter is on
(TRITON_INTERPRET=1 when this package is first imported), which then runs the kernel itself: that is how tests prove
kernels without a GPU.

Operations write into tensors that the caller gives, allocate nothing that depends on data, and never wait for the GPU.
Each file's `builds()` lists what to compile ahead of time; docs/kernels.md has what that costs on each GPU.
"""
