"""One private network for a group of machines, and a way to publish a service from any of them."""

__version__ = "0.1.0"
