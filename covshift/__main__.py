"""``python -m covshift``: the command line."""

from covshift.cli import main

main()
