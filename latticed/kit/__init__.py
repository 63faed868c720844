"""Tools that know nothing of plugins: strict JSON, safe files, text, clock, tasks, logs, sd_notify, peer credentials.

Nothing here imports another package of latticed.
"""
