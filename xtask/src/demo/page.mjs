// Looks at the console page and opens the console as the page does, as far as the machine's name and size. Nothing but Node itself.

import https from "node:https";
import tls from "node:tls";

const [host, port, ticket] = process.argv.slice(-3);
// The demo's certificate is of its own making.
const options = { host, port, rejectUnauthorized: false };

function fetch(path) {
  return new Promise((done, failed) => {
    https.get({ ...options, path }, (answer) => {
      let size = 0;
      answer.on("data", (piece) => { size += piece.length; });
      answer.on("end", () => done({ status: answer.statusCode, type: answer.headers["content-type"], size }));
    }).on("error", failed);
  });
}

/** Gives the bytes of the frames' payloads; the appliance's are short here, and not masked. */
class Frames {
  constructor(socket) {
    this.socket = socket;
    this.raw = Buffer.alloc(0);
    this.data = Buffer.alloc(0);
  }

  async take(n) {
    while (this.data.length < n) {
      const head = this.raw[1] === 126 ? 4 : 2;
      const length = head === 4 && this.raw.length >= 4 ? this.raw.readUInt16BE(2) : this.raw[1];
      if (this.raw.length >= 2 && this.raw.length >= head + length) {
        if ((this.raw[0] & 15) === 8) throw new Error(`closed: ${this.raw.subarray(head + 2, head + length)}`);
        this.data = Buffer.concat([this.data, this.raw.subarray(head, head + length)]);
        this.raw = this.raw.subarray(head + length);
      } else {
        this.raw = Buffer.concat([this.raw, await this.more()]);
      }
    }
    const taken = this.data.subarray(0, n);
    this.data = this.data.subarray(n);
    return taken;
  }

  more() {
    return new Promise((done, failed) => {
      this.socket.once("data", done);
      this.socket.once("end", () => failed(new Error("the connection ended")));
      this.socket.once("error", failed);
    });
  }

  send(bytes) {
    this.socket.write(Buffer.concat([Buffer.from([0x82, 0x80 | bytes.length, 0, 0, 0, 0]), bytes]));
  }
}

for (const path of ["/console/", "/console/page.js", "/console/novnc/core/rfb.js"]) {
  const { status, type, size } = await fetch(path);
  console.log(`  GET ${path}: ${status} ${type}, ${size} bytes`);
  if (status !== 200) throw new Error("no console page");
}
const socket = tls.connect(options);
const frames = new Frames(socket);
socket.write(`GET /ticket/${ticket} HTTP/1.1\r\nHost: ${host}:${port}\r\nOrigin: https://${host}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: binary\r\n\r\n`);
while (!frames.raw.includes("\r\n\r\n")) frames.raw = Buffer.concat([frames.raw, await frames.more()]);
const end = frames.raw.indexOf("\r\n\r\n") + 4;
const status = frames.raw.subarray(0, frames.raw.indexOf("\r\n")).toString();
frames.raw = frames.raw.subarray(end);
if (!status.includes(" 101 ")) throw new Error(status);
await frames.take(12);
frames.send(Buffer.from("RFB 003.008\n"));
await frames.take(2);
frames.send(Buffer.from([1]));
await frames.take(4);
frames.send(Buffer.from([1]));
const init = await frames.take(24);
const name = await frames.take(init.readUInt32BE(20));
console.log(`  WebSocket, ServerInit: ${init.readUInt16BE(0)} x ${init.readUInt16BE(2)}, ${JSON.stringify(name.toString())}`);
socket.end();
