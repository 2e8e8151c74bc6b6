"""Weights that stay compressed in memory, and products with them."""
