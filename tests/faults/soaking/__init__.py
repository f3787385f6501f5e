"""The soak: what its processes do, what is done to them, and what they leave on record."""
