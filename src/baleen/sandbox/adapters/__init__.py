"""Boxes behind other programs' interfaces. Each module needs that program's package, no other."""
