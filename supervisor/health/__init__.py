"""Check that agents are alive and not too large; measure what they use."""
