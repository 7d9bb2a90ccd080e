"""The services A, B and C that `/chain` calls, and a client for each programming style."""
