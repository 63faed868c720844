"""Secrets: values that operators keep here and plugins only name, as `${secret:NAME}`.

A value leaves this package only as a loan to the call that the operator bound it to, and is redacted from answers.
"""
