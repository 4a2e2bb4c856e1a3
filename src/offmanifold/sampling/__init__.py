"""Markov chains on energies: Langevin steps, with and without Metropolis's correction, their starts and memory."""

from offmanifold.sampling import langevin, metropolis
from offmanifold.sampling.chain import Info, Kernel, Space, State, run
from offmanifold.sampling.replay import Replay
from offmanifold.sampling.starts import FromData, OnManifold, Persistent

__all__ = [
    "FromData",
    "Info",
    "Kernel",
    "OnManifold",
    "Persistent",
    "Replay",
    "Space",
    "State",
    "langevin",
    "metropolis",
    "run",
]
