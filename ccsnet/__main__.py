"""`python -m ccsnet` is `ccsnet`."""

from ccsnet.cli import main

if __name__ == "__main__":
    main()
