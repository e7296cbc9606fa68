"""Looks at one run from its record alone: follows it while it goes on (follow), and writes it as a trace (trace).

It reads, and writes nothing into the folder of a run.
"""
