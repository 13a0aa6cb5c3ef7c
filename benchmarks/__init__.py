"""What Meshwire costs, beside what its broker's own client costs: `python -P -m benchmarks --help`."""
