"""Jobs: calls of the app that a broker holds until they are due, once or by a schedule."""
