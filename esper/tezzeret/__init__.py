"""Tezzeret: compiles blueprints to validated kernels."""
