"""Tables for people: what they hold, and the formats in which they are written."""
