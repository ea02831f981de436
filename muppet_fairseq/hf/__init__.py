"""Hugging Face layout: models and tokenizers read from it and written in it."""
