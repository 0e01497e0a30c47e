"""Which rows a batch of tokens sends where, and which slot serves each of its (token, expert) pairs."""
