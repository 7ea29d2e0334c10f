// A browser that a test drives: one JSON command a line on standard input, one JSON answer a line on standard output.
// Everything the pages did (requests, answers' headers, console, errors, WebSockets) is kept for `log`.

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.env.MKSGATE_CHROMIUM ?? "/usr/bin/chromium",
  chromiumSandbox: false,
  // No shared memory is taken for granted, and nothing but the pages of the test is talked to. These are on loopback, where
  // chromium lets no page of the outside lead.
  args: ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-features=LocalNetworkAccessChecks"],
});
// The appliance's certificate is of its own making.
const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1000, height: 700 } });
context.setDefaultTimeout(Number(process.env.MKSGATE_PATIENCE_MS));
const page = await context.newPage();
const devtools = await context.newCDPSession(page);

const log = { requests: [], responses: [], console: [], errors: [], sockets: [] };
page.on("request", (request) => log.requests.push({ url: request.url(), method: request.method() }));
page.on("response", (response) =>
  log.responses.push({ url: response.url(), status: response.status(), headers: response.headers() }));
page.on("console", (message) => log.console.push({ type: message.type(), text: message.text() }));
page.on("pageerror", (error) => log.errors.push(String(error)));
page.on("websocket", (socket) => log.sockets.push({ url: socket.url() }));

const commands = {
  /** Opens an address in the page. */
  open: async ({ url }) => { await page.goto(url); },
  /** The value of an expression; a promise is waited for. By way of the debugger, so that no policy of the page's is loosened. */
  eval: async ({ js }) => {
    const { result, exceptionDetails } =
      await devtools.send("Runtime.evaluate", { expression: js, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value ?? null;
  },
  /** Waits until an element is there (and seen, unless told otherwise). */
  wait: async ({ selector, state }) => { await page.locator(selector).first().waitFor({ state: state ?? "visible" }); },
  text: ({ selector }) => page.locator(selector).first().textContent(),
  click: async ({ selector, x, y }) => {
    await page.locator(selector).first().click(x === undefined ? {} : { position: { x, y } });
  },
  move: async ({ x, y }) => { await page.mouse.move(x, y); },
  /** A key with its modifiers, as people press it: `Control+Alt+Shift+B`. */
  press: async ({ key }) => { await page.keyboard.press(key); },
  /** A key by what is printed on it and where it sits: those of keyboards other than the American one. */
  key: async ({ key, code }) => {
    await devtools.send("Input.dispatchKeyEvent", { type: "keyDown", key, code, text: key });
    await devtools.send("Input.dispatchKeyEvent", { type: "keyUp", key, code });
  },
  type: async ({ text }) => { await page.keyboard.type(text); },
  screenshot: async ({ path }) => { await page.screenshot({ path }); },
  viewport: async ({ width, height }) => { await page.setViewportSize({ width, height }); },
  /** Answers requests to an origin with these files, as a portal's own web server would. */
  portal: async ({ origin, files }) => {
    await context.route(`${origin}/**`, async (route) => {
      const file = files[new URL(route.request().url()).pathname];
      if (!file) return route.fulfill({ status: 404, body: "" });
      const contentType = file.endsWith(".html") ? "text/html" : "text/javascript";
      return route.fulfill({ body: await readFile(file, "utf8"), contentType });
    });
  },
  log: () => log,
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    answer = { ok: (await commands[command.do](command)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
