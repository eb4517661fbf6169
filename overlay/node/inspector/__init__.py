"""The last requests to what is exposed by http, with bodies: for who develops what is behind it. In memory alone."""
