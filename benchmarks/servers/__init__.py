"""A benchmark of every server against its production counterparts, in one interleaved run."""
