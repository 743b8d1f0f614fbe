"""`python cli.py VERB` runs AutoSlim from a clone."""

from autoslim.commands import main

if __name__ == "__main__":
    main()
