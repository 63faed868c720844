"""static.*: files that a plugin publishes, in a directory of its own with a quota."""
