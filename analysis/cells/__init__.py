"""One cell at a time, over its repeats: its numbers with their intervals, its name, its measures."""
