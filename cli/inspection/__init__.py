"""What `specmoe inspect` says of each kind of file, from its header alone."""
