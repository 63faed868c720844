"""network.*: changes of this host that plugins ask for, kept as plans. Changes nothing itself."""
