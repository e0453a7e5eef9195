"""Bringing the users of another system: the file, and the calls that import it."""
