"""`python -m kernel_lab.cli`."""

from kernel_lab.cli import main

main()
