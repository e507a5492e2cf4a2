"""Engines, one file each, and HTTP to those that are not in this process."""
