"""How a process becomes a rank: launchers, joining the job, the place of each rank, and what shields a job from a death."""
