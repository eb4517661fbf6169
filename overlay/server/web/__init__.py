"""Users who speak HTTP: which exposure a request is for, and its way to the target and back."""
