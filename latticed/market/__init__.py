"""The marketplace: signed indexes of sources that the operator named, and bundles taken from them.

It asks a source only when an operator asks it, and tells it nothing. What it takes is verified as every bundle is, with
the index as one more condition, and laid into the market's plugin directory; it never grants, installs or starts
anything, and no index alters whom the policy trusts.
"""
