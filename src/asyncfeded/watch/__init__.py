"""Looks at one run from its record alone: follows it while it goes on (watch), and writes it as a trace (trace)."""
