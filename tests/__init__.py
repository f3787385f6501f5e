"""The tests of idempo."""
