"""The losses; each module registers one criterion."""
