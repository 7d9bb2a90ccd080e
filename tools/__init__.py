"""Makes files that `sandbox` ships; not shipped itself."""
