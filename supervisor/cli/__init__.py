"""The commands nsbridged, nsbridgectl and nsbridge."""
