"""Metrics that no well-kept library computes from summable counts or from spans."""
