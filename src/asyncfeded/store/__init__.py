"""What a run writes to the disk: its record and its checkpoints."""
