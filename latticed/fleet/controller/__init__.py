"""The fleet's controller: what it keeps, what it decides, and the process that carries it out.

It gives nodes what operators signed, in waves, and shows what became of it. Its database is the truth, and the message
system a copy that it fills again. It must not sign anything but assignments, credentials of nodes and its own records,
and never makes a node believe what no operator signed.
"""
