"""The commands: ``beyond-blur COMMAND``, or ``python -m cli.COMMAND``; ``beyond-blur`` alone lists them."""
