"""Every server against its production counterparts, in one interleaved run."""
