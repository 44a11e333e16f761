"""`python tests/chaotic_scheduler.py ...`: the scheduler, with one policy more: `chaotic:SEED`.

It decides at random (see `chaos.chaotic`), in orders of at most three steps on one, two or four slots, be
they worth it or not, so that degrees and places change all the time.
"""

import sys

import chaos

from scheduler import policies
from scheduler.command import main


def factory(seed: str):
    """The policy of a seed."""
    return chaos.chaotic(int(seed), longest=3, degrees=(1, 2, 4))


sys.modules["scheduler.policies.chaotic"] = sys.modules[__name__]
policies._POLICIES["chaotic"] = policies._Entry("chaotic", "factory", "at random", "SEED")

if __name__ == "__main__":
    main(prog_name="python tests/chaotic_scheduler.py")
