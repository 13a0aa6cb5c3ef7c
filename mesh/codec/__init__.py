"""CloudEvents 1.0 on the wire: attribute rules, header values, the JSON format, the HTTP binding."""
