"""The reference servers: one HTTP service, written once for each model of concurrency.

Everything here runs on the standard library and httptools alone, and imports nothing of the sandbox manager.
"""
