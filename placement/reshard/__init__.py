"""Compile a checkpoint into the layout that a plan asks for, and prove what was compiled."""
