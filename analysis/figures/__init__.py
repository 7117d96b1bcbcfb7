"""Figures as files, drawn from the report alone."""
