"""One run at a time: its record read, and what its numbers say by themselves."""
