"""Events that are published later, once or again and again: held by the broker until they are due."""
