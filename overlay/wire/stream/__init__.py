"""What a byte stream between node and server looks like on the wire, once it is set up. Sans-I/O."""
