"""Delivery: the HTTP API, the app channel, the command line and the composition root."""
