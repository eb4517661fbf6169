"""IP packets, as far as the data plane reads and rewrites them: headers, offload fields, superpackets, checksums."""
