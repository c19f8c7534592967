"""Networks trained through the cycles."""
