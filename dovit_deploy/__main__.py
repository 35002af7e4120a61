"""`python -m dovit_deploy` is `dovit`."""

from dovit_deploy.cli import main

main()
