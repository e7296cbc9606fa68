"""One run: its server and its clients, its plan, resuming, progress, the result, and an orderly end."""

import os

REFUSED = 2
"""Exit status of a run that cannot start, for a reason that the user can correct."""
RESUMABLE = os.EX_TEMPFAIL
"""Exit status, 75, of a run that SIGINT or SIGTERM ended; `asyncfeded resume` continues it."""
