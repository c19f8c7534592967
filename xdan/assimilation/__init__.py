"""Twin experiments, cycling, baselines and their scores."""
