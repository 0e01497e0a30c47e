"""Run a model over text, or read another engine's record, and write down which experts each token uses."""
