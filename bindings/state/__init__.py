"""State stores: one module one component type."""
