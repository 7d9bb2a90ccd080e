"""A minimal HTTP server in Python: one epoll loop that looks for empty lines and sends a fixed reply.

The reactor is measured against it. It has no parser, no workers and no error handling. Its argument is the port.
"""

import select
import socket
import sys

REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n"

listener = socket.create_server(("127.0.0.1", int(sys.argv[-1])), backlog=1024)
listener.setblocking(False)
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
clients: dict[int, socket.socket] = {}
while True:
    for descriptor, _ in poll.poll():
        if descriptor == listener.fileno():
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients[client.fileno()] = client
            poll.register(client, select.EPOLLIN)
            continue
        client = clients[descriptor]
        try:
            data = client.recv(65536)
            if data:
                client.send(REPLY * data.count(b"\r\n\r\n"))
                continue
        except ConnectionError:
            data = b""
        del clients[descriptor]
        client.close()
