"""Tools that never heard of plugins: strict JSON, safe files, text, clock, tasks, logs, sd_notify, peer credentials.

Nothing here imports another room of the house.
"""
