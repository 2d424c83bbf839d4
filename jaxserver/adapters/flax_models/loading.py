"""Reads the weights of a Flax checkpoint folder."""
