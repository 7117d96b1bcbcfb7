"""What is measured of a training, and whether it may be believed."""
