"""`python -m cutefp4.cli`: the command line where no script is installed."""

from cutefp4.cli import main

main()
