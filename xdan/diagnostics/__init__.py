"""What a network has learned, and what the model amplifies."""
