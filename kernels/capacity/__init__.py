"""Bound how many of a rank's tokens an expert or a device may get, before anything is sent."""
