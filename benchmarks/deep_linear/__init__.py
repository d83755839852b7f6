"""Samplers judged on deep linear networks, whose learning coefficients are known (arXiv:2507.21449)."""
