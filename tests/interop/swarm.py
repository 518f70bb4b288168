"""Swarms."""
SWARMS = []
class Swarm: pass
