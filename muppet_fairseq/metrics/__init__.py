"""Metrics: a library's where a well-kept one has them, under the settings of published numbers."""
