"""The image that runs are made in: its definition, its build, its digest, and the command that starts it."""
