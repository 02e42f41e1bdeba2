"""Where keys and values live. The store owns every length; models hold no state."""
