"""The building blocks of a sidecar that are made of several parts, each put together in one place."""
