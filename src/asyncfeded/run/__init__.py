"""One run: who is the server and who is a client, the plan, resuming, progress, the result, and an orderly end."""

import os

REFUSED = 2
"""Exit status of a run that cannot start for a reason that a user can mend."""
RESUMABLE = os.EX_TEMPFAIL
"""Exit status, 75, of a run that SIGINT or SIGTERM has ended; `asyncfeded resume` goes on with it."""
