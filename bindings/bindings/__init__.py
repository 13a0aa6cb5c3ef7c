"""Bindings: one module one component type."""
