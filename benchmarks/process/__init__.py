"""One worker as a process: how it begins, gives signs of life, and leaves its result."""
