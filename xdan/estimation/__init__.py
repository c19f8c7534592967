"""What a record says of the model, of its parameters and of its errors."""
