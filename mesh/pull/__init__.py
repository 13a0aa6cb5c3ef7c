"""Pull: for clients without a port of their own, who ask for events and say what became of them."""
