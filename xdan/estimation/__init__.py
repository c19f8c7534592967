"""Estimation: what a record and its runs say of the model."""
