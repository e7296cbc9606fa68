"""The loops of server and client, the clocks that order the updates, evaluation, and the heterogeneity of clients."""
