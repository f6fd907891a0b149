"""Real models out of public packages: what the tool makes of each."""
