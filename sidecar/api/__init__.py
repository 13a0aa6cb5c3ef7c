"""The HTTP API: one module per building block, each a thin face over `mesh/`."""
