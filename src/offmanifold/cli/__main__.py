"""``python -m offmanifold.cli``."""

from offmanifold.cli.main import main

if __name__ == "__main__":
    main()
