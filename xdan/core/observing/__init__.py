"""H and R: which sites are observed, through what operator, and with what errors."""
