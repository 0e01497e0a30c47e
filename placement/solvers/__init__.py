"""The solvers: pure functions `(profile, topology, options) -> plan`, and the searches that they share."""
