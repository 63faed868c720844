"""notify.send: messages to the operator, on disk before they are accepted, delivered at least once to each channel."""
