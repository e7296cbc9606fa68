"""A model as one flat buffer, the passes over it, and the global model with the bases of its clients."""
