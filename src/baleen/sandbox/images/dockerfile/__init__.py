"""Builds images from Dockerfiles, each step in a box. Begin with ``builder.py``."""
