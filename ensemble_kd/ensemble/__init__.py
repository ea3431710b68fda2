"""Combining the members of an ensemble, and storing what they say in little space."""
