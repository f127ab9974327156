"""`python -m pam_mobile`."""

from .cli import main

main()
