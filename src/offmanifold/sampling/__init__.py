"""Markov chains on energies: Langevin steps, with and without Metropolis's correction, their starts and memory."""

from offmanifold.sampling import langevin, metropolis
from offmanifold.sampling.chain import Info, Kernel, Space, State, run
from offmanifold.sampling.replay import Replay

__all__ = ["Info", "Kernel", "Replay", "Space", "State", "langevin", "metropolis", "run"]
