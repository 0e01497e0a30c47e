"""Compute, check, measure and compile placements of experts on ranks."""
