"""Many machines: files, and parts of large ones, are converted and verified where there is room.

Engines that exist do the rest: Ray, or any executor of ``concurrent.futures``.
"""

from wcodec.fleet.conversion import convert_file, spread
from wcodec.fleet.engines import open_engine
from wcodec.fleet.running import Fleet, in_this_process

__all__ = ["Fleet", "convert_file", "in_this_process", "open_engine", "spread"]
