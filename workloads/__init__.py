"""The reference servers: one HTTP service, implemented once for each concurrency model.

They need only the standard library and httptools, and import nothing from the sandbox manager.
"""
