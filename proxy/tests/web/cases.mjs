// Runs cases of RFC 6455 with the `ws` library: it opens the connection, reads every frame of the answers and judges them by its
// own rules; what is sent is framed by its Sender. A line of JSON for each case on standard output: what was seen, or `ok`.

import { text } from "node:stream/consumers";
import WebSocket, { Sender } from "ws";

const { url, cases } = JSON.parse(await text(process.stdin));
const PATIENCE = 60000;

const bytes = (data) => {
  if (!data.startsWith("*")) return Buffer.from(data, "hex");
  return Buffer.from(Array.from({ length: Number(data.slice(1)) }, (_, i) => (i * 7 + 3) & 0xff));
};

/** The frame on the wire, masked. */
function wire({ raw, op, data, fin = true, rsv = 0, times = 1 }) {
  if (raw !== undefined) return bytes(raw);
  const parts = Sender.frame(bytes(data), { fin, opcode: op, rsv1: false, mask: true, readOnly: true });
  const frame = Buffer.concat(parts);
  frame[0] |= rsv << 4;
  return Buffer.concat(Array(times).fill(frame));
}

/** Sends `all` in writes of `size` bytes, each when the one before has gone. */
async function chopped(socket, all, size) {
  for (let at = 0; at < all.length && socket.writable; at += size) {
    await new Promise((done) => socket.write(all.subarray(at, at + size), done));
  }
}

function run(one) {
  return new Promise((done) => {
    const protocols = one.protocol ? [one.protocol] : [];
    const ws = new WebSocket(url, protocols, { rejectUnauthorized: false, autoPong: false });
    const seen = { pong: null, close: null, error: null };
    const wanted = Buffer.concat(one.echo.map(bytes));
    let [received, rfb] = [[], Buffer.alloc(0)];
    let length = 0;
    const timer = setTimeout(() => finish("no end in time"), PATIENCE);
    const finish = (why) => {
      clearTimeout(timer);
      ws.terminate();
      const echo = Buffer.concat(received);
      const pong = one.pong === undefined ? null : bytes(one.pong).toString("hex");
      const code = one.close ?? (one.leave ? null : 1000);
      const ok = !why && !seen.error && echo.equals(wanted) && seen.pong === pong && (one.leave || seen.close === code);
      done({ name: one.name, ok, why, ...seen, echo: echo.subarray(0, 40).toString("hex"), length: echo.length });
    };
    // A case without an end of its own is over when everything has come.
    const whole = () => {
      if (length < wanted.length) return;
      if (one.then) {
        send(one.then);
        one.then = null;
      }
      if (one.close !== undefined) return;
      if (one.pong !== undefined && seen.pong !== bytes(one.pong).toString("hex")) return;
      if (one.leave) finish();
      else ws.close(1000);
    };
    const send = (list) => {
      const frames = list.map(wire);
      if (one.chop > 0) chopped(ws._socket, Buffer.concat(frames), one.chop);
      else if (one.chop === 0) ws._socket.write(Buffer.concat(frames));
      else for (const frame of frames) ws._socket.write(frame);
    };
    // RFB's handshake, then the case. The echo begins behind ClientInit, which is not passed on.
    let step = 0;
    const handshake = (data) => {
      rfb = Buffer.concat([rfb, data]);
      const [expect, answer] = [["RFB 003.008\n", "RFB 003.008\n"], ["\x01\x01", "\x01"], ["\0\0\0\0", "\x01"]][step];
      if (rfb.length < expect.length) return;
      if (rfb.toString("latin1") !== expect) return finish(`handshake ${step}: ${rfb.toString("hex")}`);
      rfb = Buffer.alloc(0);
      step += 1;
      ws.send(one.protocol === "uint8utf8" ? answer : Buffer.from(answer, "latin1"));
      if (step === 3) {
        send(one.send);
        whole();
      }
    };
    ws.on("open", () => {
      if (ws.protocol !== (one.protocol ?? "")) finish(`protocol ${ws.protocol}`);
      if (ws.extensions) finish(`extensions ${ws.extensions}`);
    });
    ws.on("message", (data, isBinary) => {
      if (isBinary === (one.protocol === "uint8utf8")) return finish("a message of the other type");
      const plain = isBinary ? data : Buffer.from(data.toString("utf8"), "latin1");
      if (step < 3) return handshake(plain);
      received.push(plain);
      length += plain.length;
      whole();
    });
    ws.on("pong", (data) => { seen.pong = data.toString("hex"); whole(); });
    ws.on("error", (error) => { seen.error ??= String(error); });
    ws.on("close", (code, reason) => { seen.close = code; seen.reason = reason.toString(); finish(); });
  });
}

for (const one of cases) console.log(JSON.stringify(await run(one)));
