"use strict";
// Runs one test group against solution.js. Started with: node javascript.js <test file>.
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");
const assert = require("node:assert/strict");

(function main() {
  const nonce = fs.readFileSync(0, "utf8").trim();
  const writeSync = fs.writeSync;
  const leave = process.reallyExit.bind(process);
  // Written straight to the descriptor, so that a sudden end cannot lose it.
  function say(word, text) {
    const line = String(text === undefined ? "" : text).slice(0, 2000).replace(/\n/g, "\x1f");
    writeSync(3, `${nonce} ${word} ${line}\n`);
  }
  say("START");
  // Never returns and cannot be caught.
  function exploited(why) {
    say("EXPLOITED", why);
    leave(0);
  }
  function fail(error) {
    let text = "an error that cannot be shown";
    try {
      text = error instanceof Error ? error.stack : String(error);
    } catch { /* a hostile getter */ }
    say("FAIL", text);
    leave(0);
  }
  const file = path.resolve("solution.js");
  try {
    vm.compileFunction(
      fs.readFileSync(file, "utf8"),
      ["exports", "require", "module", "__filename", "__dirname"],
      { filename: file },
    );
  } catch (error) {
    say("INVALID", error instanceof Error ? `${error.name}: ${error.message}` : "cannot be read");
    leave(0);
  }
  // The test's own: a program may change what it gets from node:assert/strict itself.
  const { ok } = assert;
  const own = Object.freeze(Object.assign((...given) => ok(...given), assert));
  process.on("uncaughtException", fail);
  process.on("unhandledRejection", fail);
  const localRequire = require("node:module").createRequire(file);
  const AsyncFunction = (async () => {}).constructor;
  const text = fs.readFileSync(process.argv[2], "utf8");
  (async () => {
    const solution = localRequire(file);
    const test = new AsyncFunction("exploited", "assert", "require", "solution", text);
    await test(exploited, own, localRequire, solution);
  })().then(() => {
    say("PASS");
    leave(0);
  }, fail);
})();
