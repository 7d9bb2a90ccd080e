"""Renders a `sandbox.results.Document`: for a terminal, as Markdown, as one HTML file."""
