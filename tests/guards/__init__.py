"""Guards, which judge a row of the user's own, on real databases."""
