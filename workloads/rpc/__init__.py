"""Services A, B and C behind `/chain`, and their clients: one for each style, all with the same wire format."""
