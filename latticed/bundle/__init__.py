"""The two files of a bundle: read and written safely, and what the manifest's bytes mean.

It opens nothing but `manifest.json` and `artifact` beneath a directory it was given, follows no link and waits for no
FIFO. It must not judge whether a bundle may run (`trust` does), and never executes what it reads.
"""
