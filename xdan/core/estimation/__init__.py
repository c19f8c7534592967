"""Estimation from a record: Gaussian filters and smoothers, and the statistics of errors that they leave."""
