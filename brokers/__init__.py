"""Adapters of the broker ports, one per broker."""
