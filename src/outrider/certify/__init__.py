"""Does a method change the text? Differences told apart, and certificates."""
