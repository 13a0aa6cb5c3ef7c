"""The state building block: what every store has in common, and the store on the backbone."""
