"""Estimation from a record: Gaussian filters and smoothers, statistics of errors, and parameters of a model."""
