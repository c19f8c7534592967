"""What a record says of the model and of its own errors."""
