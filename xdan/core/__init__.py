"""Tensors in, tensors out: dynamics, observing, networks, methods and losses, batched over leading axes."""
