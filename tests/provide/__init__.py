"""Where the real servers for the tests come from. Tests import `tests.servers`, nothing in here."""
