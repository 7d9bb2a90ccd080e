"""HTTP/1.1 without I/O: parse requests from bytes, and encode responses to bytes (RFC 9110, RFC 9112)."""
