"""Urza: the kernel library and its cache tiers."""
