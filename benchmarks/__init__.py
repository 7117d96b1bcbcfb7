"""What is measured and how: configuration, sweep, supervisor, kernel, record."""
