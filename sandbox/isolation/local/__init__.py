"""Levels `process` and `namespace`: processes of this host's kernel, with no engine in between."""
