"""What `overlay capture` makes of a capture's stream: packets, filters, lines of text, pcapng files."""
