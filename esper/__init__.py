"""Esper: train PyTorch networks that grow while they train."""
