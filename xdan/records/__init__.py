"""A Dataset understood: its words, its values, its times, its stores, and the crossing to tensors."""
