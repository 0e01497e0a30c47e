"""Lower bounds: what no placement can go below for the plan's homes, or for any homes, and how they are proven."""
