"""`python -m autoslim` is the same program as `autoslim`."""

from autoslim.commands import main

if __name__ == "__main__":
    main()
