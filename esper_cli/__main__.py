"""``python -m esper_cli``: the same as the ``esper`` command."""

from esper_cli.app import main

if __name__ == "__main__":
    main()
