"""`python -m truing` is the command `truing`."""

from truing.cli.main import main

main()
