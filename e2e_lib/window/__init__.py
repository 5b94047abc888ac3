"""A chat window: one component, in a notebook's cell or as a page of its own."""
