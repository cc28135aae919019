"""`python -m podidentity`: the same as the `podidentity` command."""

from podidentity.cli.main import main

main()
