"""`python -m idempo` is the command `idempo`."""

from idempo.cli import main

if __name__ == "__main__":
    main()
