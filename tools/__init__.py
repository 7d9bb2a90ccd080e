"""Tools that generate files of the package `sandbox`. They are not part of the package."""
