"""Every random number of a run comes from a hash of where it is needed.

Nothing random is carried from one phase to the next. So a phase can be run again, or left out, and no other changes.
"""

import hashlib
import json

import torch


def seed_of(seed: int, stage: int, task: str, phase: str, epoch: int = 0) -> int:
    """A seed of 63 bits for one use: the run's seed, the stage, the task, what it is for, and the epoch."""
    digest = hashlib.sha256(json.dumps([seed, stage, task, phase, epoch]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, stage: int, task: str, phase: str, epoch: int = 0) -> torch.Generator:
    """A generator on the CPU with this seed, so that the numbers are the same on every device."""
    return torch.Generator().manual_seed(seed_of(seed, stage, task, phase, epoch))
