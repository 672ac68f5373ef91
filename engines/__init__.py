"""Engines: the bundle format and the backends that run its graphs."""
