"""Commands: ``python -m cli.corrupt``, ``cli.train``, ``cli.sample``, ``cli.evaluate``, ``cli.benchmark``."""
