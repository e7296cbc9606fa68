"""Messages between the server and the workers. No other part sends or receives messages while a run trains."""
