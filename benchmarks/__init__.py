"""What things cost: ``python -m benchmarks NAME``, one figure a file, as a ratio measured side by side."""
