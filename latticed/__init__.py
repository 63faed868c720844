"""latticed: run plugins on a Linux host without trusting them blindly."""

__all__ = ["__version__"]

# As in setup.cfg, which a test compares: looking it up in the installed metadata takes 30 ms of CPU and 1 MiB.
__version__ = "0.1.0"
