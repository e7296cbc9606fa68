"""How a process becomes a rank: launchers, joining the job, the place of each rank, the shield against a rank's death."""
