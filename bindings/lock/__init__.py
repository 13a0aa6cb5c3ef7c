"""Lock stores: one module one component type."""
