"""Gather the rows of each token and add them up, weighted, in float32."""
