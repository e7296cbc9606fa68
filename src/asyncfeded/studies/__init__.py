"""Many runs: grids that compare rules, and scaling studies; each run is a job of its own, and what is done is skipped."""
