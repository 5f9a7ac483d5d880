"""The composition root: configuration in, wired objects out.

Nothing else builds its own collaborators, and ``DictConfig`` goes no further than this package. A module for
each thing that commands need, so that listing kernels does not wait for PyTorch.
"""
