"""The numbers for other programs."""
