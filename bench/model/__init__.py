"""Task: a whole model of Gemma 4 E2B's shape: python -m bench.model."""
