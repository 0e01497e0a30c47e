"""Hand a placement plan to a serving engine, in the engine's own file format."""
