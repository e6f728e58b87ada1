"""Images: how they are called, what they are made of, and where they are kept."""
