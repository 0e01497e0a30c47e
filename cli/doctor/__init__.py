"""What `specmoe doctor` looks at: what of this machine can be used, and for what."""
