"""Hydra finds its plugins in this namespace: thin glue, no logic."""
