"""Numbers with their uncertainty; knows nothing of the project."""
