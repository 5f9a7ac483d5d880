"""Kasmina: layers, seeds, blending, health signals."""
