"""What a host remembers: one protocol, and its implementation on SQLite."""
