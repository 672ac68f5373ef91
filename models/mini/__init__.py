"""A small V-Express trained on a drawn world: faces and speech made by programs, so that no one's data is needed."""
