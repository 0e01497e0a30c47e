"""Assign, dispatch and combine: the three steps that move tokens to experts and back."""
