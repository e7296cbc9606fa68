"""The server's loop and the client's loop, whose update is next, evaluation, and who is slow."""
