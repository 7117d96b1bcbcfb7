"""What every part agrees on: configuration, sweep, record, folder. Knows neither torch nor Hydra nor Slurm."""
