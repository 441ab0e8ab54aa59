"""After how long something hangs: no machine is ever so busy."""

HANG_SECONDS = 1200
