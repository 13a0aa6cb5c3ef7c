"""Dead letters: where they are kept, how they are looked through and sent again (docs/dead-letters.md)."""
