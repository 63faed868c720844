"""nginx: this host's web sites, from an intent that an operator reviews.

Pure: `decode` reads an intent strictly, `check` says what is wrong with it (with and without facts of the live host),
`render` writes the whole configuration of an nginx of its own, one file for each site, `syntax` is the part of nginx's
language that it uses, `applied` reads a rendering again, `narrows` says whether a new intent only takes away. None of
them opens a file, starts a program or reads a clock.
"""
