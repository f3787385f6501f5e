"""Ways to make a network and a server misbehave on purpose."""
