"""What an ingress must read of a stream: HTTP/1.1 heads and bodies, the server name in a ClientHello. Sans-I/O."""
