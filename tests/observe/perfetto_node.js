// Perfetto's trace_processor (WebAssembly, as its page brings it) in Node: requests on standard input, each after its length, replies on
// standard output. The folder that holds engine_bundle.js and the .wasm files is the argument.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const folder = process.argv[2];
const read = (name) => fs.readFileSync(path.join(folder, path.basename(String(name))));

// What the script finds where it expects to be, in a worker of a page.
class XMLHttpRequest {
  open(_, name) { this.name = name; }
  send() { this.response = read(this.name); }
}
const worker = {
  console: { log() {}, warn() {}, error() {} },
  WorkerGlobalScope: class {}, XMLHttpRequest, location: { href: "http://localhost/engine_bundle.js" },
  URL, TextDecoder, TextEncoder, performance, setTimeout, clearTimeout, crypto: globalThis.crypto,
  WebAssembly, Uint8Array, Error, TypeError, RangeError, Promise, BigInt,
};
worker.self = worker;
vm.createContext(worker);
vm.runInContext(read("engine_bundle.js").toString("utf8"), worker);
const port = { postMessage(reply) { fs.writeSync(1, reply); } };
worker.onmessage({ data: port });

let waiting = Buffer.alloc(0);
setImmediate(() => {
  process.stdin.on("data", (part) => {
    waiting = Buffer.concat([waiting, part]);
    while (waiting.length >= 4 && waiting.length >= 4 + waiting.readUInt32LE(0)) {
      const size = waiting.readUInt32LE(0);
      port.onmessage({ data: new Uint8Array(waiting.subarray(4, 4 + size)) });
      waiting = waiting.subarray(4 + size);
    }
  });
  process.stdin.on("end", () => process.exit(0));
});
