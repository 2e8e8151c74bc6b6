"""A process that sends the versions of a run one after the other, until a test kills it.

Usage: sync_writer.py URL SEED N
"""

from __future__ import annotations

import sys

from runs import fixed_steps

from wcodec.sync import open_sender


def main() -> None:
    url, seed, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open_sender(url, max_behind=2) as sender:
        for state in fixed_steps(n, seed):
            sender.send(state)
            print("sent", flush=True)
        sys.stdin.read()  # until it is told to end


if __name__ == "__main__":
    main()
