"""Which checkpoint is champion: gate, aliases, re-evaluation, webhook."""
