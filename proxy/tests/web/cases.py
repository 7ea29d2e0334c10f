"""Runs cases of RFC 6455 with the `websockets` library, without its I/O: it makes the handshake, frames what is sent, reads every
frame of the answers and judges them by its own rules. A line of JSON for each case on standard output."""

import json
import socket
import ssl
import sys
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

PATIENCE = 60
CONTEXT = ssl.create_default_context()
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def data_of(text):
    if text.startswith("*"):
        return bytes((i * 7 + 3) & 0xFF for i in range(int(text[1:])))
    return bytes.fromhex(text)


class Unchecked(Frame):
    """A frame that may break the rules."""

    def check(self):
        pass


def wire(frame):
    if "raw" in frame:
        return data_of(frame["raw"])
    rsv, op = frame.get("rsv", 0), frame["op"]
    made = Unchecked(Opcode.BINARY, data_of(frame["data"]), frame.get("fin", True)).serialize(mask=True)
    first = made[0] & 0x80 | rsv << 4 | op
    return (bytes([first]) + made[1:]) * frame.get("times", 1)


class Run:
    def __init__(self, url, case):
        self.case, self.echo, self.pong, self.close = case, bytearray(), None, None
        self.wanted = b"".join(map(data_of, case["echo"]))
        self.subprotocol, self.then = case["protocol"], case.get("then")
        self.protocol = ClientProtocol(
            parse_uri(url), subprotocols=[self.subprotocol] if self.subprotocol else None, max_size=None)
        parts = urlsplit(url)
        plain = socket.create_connection((parts.hostname, parts.port), PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = CONTEXT.wrap_socket(plain, server_hostname="console.example")

    def flush(self):
        for data in self.protocol.data_to_send():
            if data:
                self.tls.sendall(data)

    def read(self):
        """The frames of the next piece; None at the end."""
        data = self.tls.recv(1 << 16)
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
        return (self.protocol.events_received(), bool(data))

    def take(self, frame):
        if frame.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                text = self.subprotocol == "uint8utf8"
                assert frame.opcode is (Opcode.TEXT if text else Opcode.BINARY), "a message of the other type"
            data = bytes(frame.data)
            self.echo += data.decode().encode("latin-1") if self.subprotocol == "uint8utf8" else data
        elif frame.opcode is Opcode.PONG:
            self.pong = bytes(frame.data)

    def handshake(self):
        self.protocol.send_request(self.protocol.connect())
        self.flush()
        steps = [(b"RFB 003.008\n", b"RFB 003.008\n"), (b"\1\1", b"\1"), (b"\0\0\0\0", b"\1")]
        while steps:
            expect, answer = steps[0]
            # RFB is a stream: the next step may have come with this one.
            if len(self.echo) < len(expect):
                events, more = self.read()
                assert more, "the end"
                for event in events:
                    if isinstance(event, Frame):
                        self.take(event)
                if self.protocol.handshake_exc:
                    raise self.protocol.handshake_exc
            else:
                assert self.echo[:len(expect)] == expect, self.echo
                del self.echo[:len(expect)]
                steps.pop(0)
                if self.subprotocol == "uint8utf8":
                    self.protocol.send_text(answer)
                else:
                    self.protocol.send_binary(answer)
                self.flush()
        assert self.protocol.subprotocol == self.subprotocol, self.protocol.subprotocol
        assert not self.protocol.extensions

    def whole(self):
        pong = self.case.get("pong")
        return len(self.echo) >= len(self.wanted) and (pong is None or self.pong == data_of(pong))

    def go(self):
        self.handshake()
        # The library must not answer for us: what it would send is dropped from here on, but for its close frames.
        frames = b"".join(map(wire, self.case["send"]))
        chop = min(self.case.get("chop") or len(frames), 1 << 16)
        self.tls.settimeout(PATIENCE)
        sent, ours = 0, "close" not in self.case
        while True:
            # Pieces go out as answers come in, so that neither side waits for the other with full buffers.
            if sent < len(frames):
                self.tls.sendall(frames[sent:sent + chop])
                sent += chop
                if sent < len(frames) and not self.pending():
                    continue
            if sent >= len(frames) and self.then and self.whole():
                frames, sent, self.then = b"".join(map(wire, self.then)), 0, None
                continue
            if sent >= len(frames) and ours and self.whole():
                if self.case.get("leave"):
                    return
                self.protocol.send_close(1000)
                self.flush()
                ours = False
            events, more = self.read()
            for event in events:
                if isinstance(event, Frame):
                    self.take(event)
            if not more or self.protocol.close_rcvd:
                break
        if self.protocol.parser_exc:
            raise self.protocol.parser_exc
        close = self.protocol.close_rcvd
        self.close = close.code if close else None

    def pending(self):
        """Whether something can be read right now."""
        import select
        return bool(self.tls.pending() or select.select([self.tls], [], [], 0)[0])

    def result(self):
        why = None
        try:
            self.go()
        except (OSError, AssertionError, WebSocketException, UnicodeError) as error:
            why = repr(error)
        finally:
            self.tls.close()
        code = self.case.get("close", None if self.case.get("leave") else 1000)
        pong = data_of(self.case["pong"]) if "pong" in self.case else None
        ok = why is None and self.echo == self.wanted and self.pong == pong and self.close == code
        shown = {"close": self.close, "pong": None if self.pong is None else self.pong.hex(), "echo": self.echo[:40].hex()}
        return {"name": self.case["name"], "ok": ok, "why": why, "length": len(self.echo), **shown}


job = json.load(sys.stdin)
for case in job["cases"]:
    print(json.dumps(Run(job["url"], case).result()), flush=True)
