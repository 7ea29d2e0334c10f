"""A host's WebMKS door by the `websockets` library: `wss://host/ticket/T`, subprotocol `binary`, a VNC server behind it.

Arguments: certificate, key, ticket, VNC port. Prints its own port."""

import socket
import ssl
import sys
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

certificate, key, ticket, vnc = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


def refuse(connection, request):
    if request.path != f"/ticket/{ticket}":
        return connection.respond(404, "no such ticket\n")
    return None


def bridge(connection):
    server = socket.create_connection(("127.0.0.1", int(vnc)))

    def down():
        while data := server.recv(65536):
            connection.send(data)
        connection.close(1000, "the machine ended")

    thread = threading.Thread(target=down, daemon=True)
    thread.start()
    try:
        for message in connection:
            server.sendall(message)
    except ConnectionClosed:
        pass
    finally:
        server.close()


with serve(bridge, "127.0.0.1", 0, ssl=context, subprotocols=["binary"], compression=None,
           process_request=refuse, max_size=None) as door:
    print(door.socket.getsockname()[1], flush=True)
    door.serve_forever()
