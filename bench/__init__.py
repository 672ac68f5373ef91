"""Bench: what a bundle costs on this machine, measured."""
