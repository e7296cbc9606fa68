"""The door: whatever file a user gives is read here, and what is wrong with it becomes one sentence with file and place."""
