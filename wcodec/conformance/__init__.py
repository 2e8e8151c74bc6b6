"""The conformance suite: ``wcodec conformance`` runs the vectors against a backend,
or against any program that decodes.

    wcodec conformance --backend numba
    wcodec conformance --backend package.module:Class
    wcodec conformance --command 'their-decoder {input} {output} {base}'

A named backend is checked in a process of its own (`InChild`), a backend object in this one.

The last line is ``214 passed, 0 failed, 0 not run``, with the numbers;
the exit status is 0 only if the last two are 0. What was not selected is counted after them.
"""

from __future__ import annotations

from wcodec.conformance.child import InChild
from wcodec.conformance.command import Command
from wcodec.conformance.documents import as_json
from wcodec.conformance.runner import Outcome, Report, checks_of, run

__all__ = ["Command", "InChild", "Outcome", "Report", "as_json", "checks_of", "run"]
