"""Find containers by name, wait for them, and hold on to their init process."""
