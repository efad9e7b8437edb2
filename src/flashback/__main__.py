"""`python -m flashback`."""

from flashback.cli.main import main

if __name__ == "__main__":
    main()
