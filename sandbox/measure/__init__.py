"""Measures what each wall costs and what it stops, and writes it down as a `sandbox.results.Document`."""
