"""Images: what becomes the read-only lower layers of a box. Begin with ``base.py``."""
