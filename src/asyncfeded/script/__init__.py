"""A run from a script or a notebook: start it, and read what it has left."""
