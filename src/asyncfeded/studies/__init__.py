"""Many runs: grids that compare rules, and scaling studies. Each run is a separate job; finished runs are skipped."""
