"""Messages between the server and the workers. The only part that sends and receives them while a run trains."""
