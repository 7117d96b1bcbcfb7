"""From the records of a sweep to tables and figures that say how training scales. Needs no torch."""
