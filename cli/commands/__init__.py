"""One file per command; `cli/main.py` finds them by name."""
