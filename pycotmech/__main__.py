"""`python -m pycotmech`."""

from pycotmech.cli import main

main()
