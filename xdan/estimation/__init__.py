"""Verbs that learn from a record what is wrong with its model: errors, parameters, corrections, surrogates."""
