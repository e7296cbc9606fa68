"""One run: its server and its clients, its plan, resuming, progress, the result, and an orderly end."""

import os

RESUMABLE = os.EX_TEMPFAIL
"""Exit status, 75, of a run that SIGINT or SIGTERM ended; it can go on."""
