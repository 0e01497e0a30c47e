"""Run a compiled checkpoint: a Hugging Face model whose expert layers execute the plan."""
