"""What stands on docs/SPEED.md, and how it is measured."""
