"""Drift: how far two profiles of a model differ, and what a plan solved from the one loses on the other."""
