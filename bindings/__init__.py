"""Adapters to external systems: bindings, stores and the like, one file per component."""
