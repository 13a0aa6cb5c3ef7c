"""Configuration items that apps read and follow (Dapr: the configuration API)."""
