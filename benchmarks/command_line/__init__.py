"""What lies between what people type and see, and the core: Hydra, the image, the terminal."""
