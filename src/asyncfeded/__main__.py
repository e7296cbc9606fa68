"""`python -m asyncfeded`, the form that a launcher starts on every rank."""

from asyncfeded.cli import main

main()
