"""Measure the cost and the isolation of each level, and record the results as a `sandbox.results.Document`."""
