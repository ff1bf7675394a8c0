"""Who vouches for whom. Pure: messages in, effects out."""
