"""Sweeps that search their keys instead of enumerating them."""
