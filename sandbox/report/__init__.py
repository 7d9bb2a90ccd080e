"""Render a `sandbox.results.Document` for a terminal, as Markdown, or as one HTML file."""
