"""Which configuration to run: what can be chosen, what for, and the answer."""
