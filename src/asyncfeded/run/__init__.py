"""One run: who is the server and who is a client, the plan, resuming, progress, the result, and an orderly end."""
