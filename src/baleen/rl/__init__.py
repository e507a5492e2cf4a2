"""Reinforcement learning of agent behaviour against real sandboxes. Needs the extra ``rl``."""
