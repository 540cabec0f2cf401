"""All routes: two agents each, and how one configuration follows another."""
