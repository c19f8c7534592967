"""Estimates of what an experiment does not know, on tensors: parameters of the model."""
