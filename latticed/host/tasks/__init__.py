"""Scripts that plugins submit and operators approve: what one is, which steps there are, and the one run it gets.

Nothing here runs without an operator's word for exactly these bytes, and never twice. Who may ask is the broker's
business.
"""
