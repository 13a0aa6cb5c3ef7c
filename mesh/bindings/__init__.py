"""Bindings: what triggers the app from outside, and what the app calls out there."""
