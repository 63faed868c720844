"""node.*: facts, counters, labels and, of what the operator listed, journal entries of this machine. Reads only."""
