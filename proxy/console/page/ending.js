// Why a console ended, in words, and whether it is worth coming back.

const WORDS = {
  1000: "The console was closed.",
  1001: "The console proxy is being restarted.",
  1002: "The viewer and the console proxy did not understand each other.",
  1003: "The viewer sent what the console proxy does not take.",
  1006: "The connection to the console proxy was lost.",
  1008: "The console proxy does not allow this console any longer.",
  1009: "The viewer sent too much.",
  1011: "The console proxy failed.",
  1012: "The console proxy is being restarted.",
  1013: "Too many consoles are open.",
  1014: "The machine's host cannot be reached.",
  1015: "The console proxy's certificate was not accepted.",
};

/** What the proxy said, else what the code stands for. */
export function wordsFor(code, reason, wasOpen) {
  if (reason) return reason;
  if (code === 1006 && !wasOpen) return "The console proxy cannot be reached, or refused the connection.";
  return WORDS[code] ?? `The connection ended (code ${code}).`;
}

/** Lost connections, restarts and failures pass; refusals and proper ends stay. */
export function mayComeBack(code) {
  return [1001, 1005, 1006, 1011, 1012, 1013, 1014].includes(code);
}

/** Milliseconds before attempt n, n from 0: doubling from half a second to 15, a quarter of it by chance. */
export function delay(attempt, chance) {
  const longest = Math.min(500 * 2 ** attempt, 15000);
  return longest * (0.75 + 0.25 * chance);
}
