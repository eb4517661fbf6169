"""Who may use an exposure, and how much."""
