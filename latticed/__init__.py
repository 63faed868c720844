"""latticed: run plugins on a Linux host without trusting them blindly."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":  # read on demand: importing the look-up alone costs latticectl 30 ms
        from importlib import metadata

        return metadata.version("latticed")
    raise AttributeError(name)
