"""HTTP/1.1 without input or output: bytes in, requests out; responses in, bytes out (RFC 9110, RFC 9112)."""
