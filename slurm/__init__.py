"""From planned runs to Slurm's job arrays and back: submission, status, cancellation. Needs no torch."""
