"""Estimates of what an experiment does not know, from a record."""
