"""A writer of a chain that goes on until it is killed: ``writer.py RUN SEED``."""

from __future__ import annotations

import random
import sys

from runs import steps

import wcodec

if __name__ == "__main__":
    run, seed = sys.argv[1], int(sys.argv[2])
    rng, states = random.Random(seed), steps(12)
    chain = wcodec.Chain(run, max_deltas=4)
    chain.append(states[0], {"state": "0"})
    print("ready", flush=True)
    while True:
        i = rng.randrange(len(states))
        chain.append(states[i], {"state": str(i)})
        if rng.random() < 0.3:
            chain.prune(keep_last=rng.randint(1, 5))
        if rng.random() < 0.3:
            chain.pack(rng.choice(chain.versions()).version)
