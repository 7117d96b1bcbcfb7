"""A sweep's own question: the panels of its figure, the table beside it, and what a search has found."""
