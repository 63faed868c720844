"""The two files of a bundle: read and written safely, and what the manifest's bytes mean.

This room opens nothing but `manifest.json` and `artifact` beneath a directory it was given, follows no link, waits for
nothing, and believes nothing: whether a bundle may run is for `trust` to judge. It never executes what it reads.
"""
