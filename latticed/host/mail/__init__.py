"""mail.send: messages of plugins to the operator's relay, and nowhere else."""
